/* Runs the command `tokenloss` in Pyodide, for try.js, which sends files and a command. */
const PROGRAM = `
import contextlib, io, runpy, shlex, sys
from pathlib import Path

def run(command):
    """What a command prints, the page that it writes, or None, and its exit status."""
    for page in Path().glob("*.html"):
        page.unlink()
    try:
        sys.argv = ["tokenloss", *shlex.split(command.strip().removeprefix("tokenloss "))]
    except ValueError as error:
        return f"tokenloss: error: the command has {str(error).lower()}", None, 2
    status, printed = 0, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_module("tokenloss", run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
    page = next(Path().glob("*.html"), None)
    return printed.getvalue(), page and page.read_text("utf-8"), status

run
`;
let loaded; /* a promise of Pyodide and of the function above */

async function load(pyodideFolder, wheel) {
  postMessage({ progress: "Downloading Python ..." });
  const { loadPyodide } = await import(`${pyodideFolder}pyodide.mjs`);
  const pyodide = await loadPyodide();
  postMessage({ progress: "Downloading NumPy and tokenloss ..." });
  await pyodide.loadPackage(["numpy", wheel], { messageCallback: () => {} });
  const missing = ["numpy", "tokenloss"].filter((name) => !(name in pyodide.loadedPackages));
  if (missing.length) throw new Error(`could not be downloaded: ${missing.join(", ")}`);
  return { pyodide, run: pyodide.runPython(PROGRAM) };
}

async function answer({ pyodide: folder, wheel, files, command }) {
  const { pyodide, run } = await (loaded ??= load(folder, wheel));
  for (const file of files) pyodide.FS.writeFile(file.name, new Uint8Array(await file.arrayBuffer()));
  postMessage({ progress: "Running ..." });
  const start = performance.now(), result = run(command);
  const seconds = ((performance.now() - start) / 1000).toFixed(1), [text, page, status] = result.toJs();
  result.destroy();
  const ended = status ? `Exit status ${status}` : "Done";
  return { text, page, note: `${ended} after ${seconds} s, with Pyodide ${pyodide.version}.` };
}

addEventListener("message", async ({ data }) => {
  try {
    postMessage(await answer(data));
  } catch (error) {
    loaded = error.name === "PythonError" ? loaded : undefined; /* else the next run loads again */
    postMessage({ text: String(error.message ?? error), note: "It did not run." });
  }
});
