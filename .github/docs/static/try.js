/* The page that runs tokenloss in the reader's browser. Python is in try-worker.js, so that the page stays responsive. */
const { pyodide, version, wheel, sample } = document.querySelector("script[data-wheel]").dataset;
const absolute = (url) => new URL(url, import.meta.url).href;
const place = document.getElementById("try");
place.innerHTML = `
  <form>
    <label class="try-drop">
      Drop files here, or choose them: .jsonl, .json, .npz or .npy
      <input type="file" multiple class="form-control">
    </label>
    <label for="try-command">Command</label>
    <input id="try-command" class="form-control" spellcheck="false" autocomplete="off" autocapitalize="off">
    <button class="sd-btn sd-btn-primary">Run</button>
    <button class="sd-btn sd-btn-outline-primary" type="button">Use the sample</button>
  </form>
  <p role="status"></p>
  <pre tabindex="0" aria-label="What the command prints" hidden></pre>
  <iframe sandbox="allow-scripts" title="The page that the command wrote" hidden></iframe>
  <p hidden><a download="page.html">Save this page</a></p>`;
const form = place.querySelector("form"), [chosen, command] = form.querySelectorAll("input");
const status = place.querySelector("[role=status]"), printed = place.querySelector("pre");
const frame = place.querySelector("iframe"), link = place.querySelector("a");
const worker = new Worker(absolute("try-worker.js"), { type: "module" });
let running = false;

const quoted = (name) => (/^[\w.,+@%/-]+$/.test(name) ? name : `'${name.replaceAll("'", `'"'"'`)}'`);

/* Let the worker save files and run the command. */
function start(files = []) {
  if (running) return;
  running = true;
  const arePair = files.length === 2 && files.every(({ name }) => name.endsWith(".npy"));
  if (arePair) files.sort((a, b) => b.size - a.size); /* scores come before ids */
  const names = files.map(({ name }) => quoted(name)).join(" ");
  if (names) command.value = `tokenloss score ${names} --html page.html`;
  status.textContent = "Starting ...";
  worker.postMessage({ pyodide: absolute(pyodide), wheel: absolute(wheel), files, command: command.value });
}

/* Show what the command printed, and the page that it wrote, if any. */
function show({ text, page, note }) {
  status.textContent = note;
  printed.textContent = text;
  printed.hidden = !text;
  URL.revokeObjectURL(link.href);
  frame.hidden = link.parentNode.hidden = !page;
  if (page) frame.src = link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  running = false;
}

worker.addEventListener("message", ({ data }) => (data.progress ? (status.textContent = data.progress) : show(data)));
worker.addEventListener("error", (event) => show({ text: event.message, note: "This browser cannot run it." }));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
chosen.addEventListener("change", () => start([...chosen.files]));
form.addEventListener("dragover", (event) => event.preventDefault());
form.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) start([...event.dataTransfer.files]);
});
form.querySelector("[type=button]").addEventListener("click", async () => {
  const response = await fetch(absolute(sample));
  start([new File([await response.blob()], sample)]);
});
command.value = "tokenloss score --help";
status.textContent = `The first run downloads Pyodide ${version}.`;
