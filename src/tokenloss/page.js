"use strict";
const text = document.getElementById("text");
const card = document.getElementById("card");
const tokens = text.getElementsByTagName("i");
let data, shown = null;

/* What the page knows of each token is read when first asked for: a long text is there sooner. */
function load() {
  data = JSON.parse(document.getElementById("data").textContent);
  let place = 0;
  for (const token of tokens) token.place = place++;
}

function make(name, className, ...children) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
}

/* Spaces and controls of a token as signs, so that they can be told apart. */
function visible(string) {
  const signs = { " ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡" };
  return string.replace(/[\0- \x7f]/g, (c) => signs[c] ?? String.fromCharCode(0x2400 + c.charCodeAt()));
}

/* null is nan: JSON has none. */
function nats(number) {
  if (number === null) return "nan";
  return (isFinite(number) ? String(+number.toPrecision(5)) : "inf") + " nats";
}

function percent(logarithm) {
  if (logarithm === null) return "nan";
  const share = Math.exp(logarithm);
  return share > 0 && share < 1e-4 ? share.toExponential(2) : +(100 * share).toPrecision(3) + " %";
}

function alternative(id, text, logarithm, isTarget) {
  const name = make("td", "", make("bdi", "", visible(text ?? String(id ?? "?"))));
  const chance = make("td", "", logarithm === null ? "" : percent(logarithm));
  name.style.setProperty("--share", logarithm === null ? 0 : Math.exp(logarithm));
  const number = make("td", "", String((text ?? null) === null ? "" : id ?? ""));
  return make("tr", isTarget ? "target" : "", name, number, chance);
}

/* null is not known: of responses of servers, whose alternatives have names, where ids may be missing. */
function fill(token) {
  const at = token.place, id = data.id[at], loss = data.loss[at], named = data.named;
  const text = data.token ? data.token[at] : data.text[id];
  const spot = data.position ? `response ${data.sequence[at]} · position ${data.position[at]}` : `position ${at}`;
  const facts = make("dl", "");
  const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  const chance = loss === null ? null : -loss;
  const head = make("header", "", make("bdi", "", visible(text ?? String(id ?? "?"))),
    make("small", "", (id === null ? "" : `id ${id} · `) + spot));
  card.replaceChildren(head, facts);
  if (token.classList.contains("ignored")) {
    facts.append(make("dt", "", "ignored: no part of the loss"));
    return;
  }
  fact("probability", percent(chance));
  if (data.rank[at] !== null) fact("rank", data.rank[at] > 0 ? String(data.rank[at]) : "none");
  fact("loss", nats(loss));
  if (data.entropy) fact("entropy", nats(data.entropy[at]));
  const rows = make("table", "");
  let listed = false;
  for (let k = at * data.k; k < (at + 1) * data.k; k++) {
    const other = data.top[k];
    if (named ? data.logprob[k] === null : other < 0) continue;
    const isTarget = id === null || other === null ? text !== null && named[k] === text : other === id;
    rows.append(alternative(other, named ? named[k] : data.text[other], data.logprob[k], isTarget));
    listed ||= isTarget;
  }
  if (rows.firstChild && !listed) rows.append(alternative(id, named ? text : data.text[id], chance, true));
  if (rows.firstChild) card.append(rows);
}

/* Below the token, else above it, else as high as it must be. */
function place() {
  const box = shown.getClientRects()[0], margin = 8;
  const right = document.documentElement.clientWidth - card.offsetWidth - margin;
  const lowest = innerHeight - card.offsetHeight - margin;
  const below = box.bottom + margin, above = box.top - card.offsetHeight - margin;
  const top = below <= lowest ? below : above >= margin ? above : lowest;
  card.style.left = Math.max(margin, Math.min(box.left, right)) + "px";
  card.style.top = Math.max(margin, top) + "px";
}

function show(token) {
  shown = token;
  card.hidden = !token;
  if (!token) return;
  if (!data) load();
  fill(token);
  place();
}

/* One token at a time can be reached by Tab; arrows move on from it. */
function focus(token) {
  if (!token) return;
  text.querySelector("[tabindex]").removeAttribute("tabindex");
  token.tabIndex = 0;
  token.focus();
}

const tokenOf = (event) => event.target.closest("i");
const focused = () => (text.contains(document.activeElement) ? document.activeElement : null);

text.addEventListener("pointerover", (event) => tokenOf(event) && show(tokenOf(event)));
text.addEventListener("pointerleave", () => show(focused()));
text.addEventListener("click", (event) => focus(tokenOf(event)));
text.addEventListener("focusin", (event) => show(event.target));
text.addEventListener("focusout", () => show(null));
text.addEventListener("keydown", (event) => {
  const at = event.target.place;
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (event.key === "Escape") event.target.blur();
  if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  focus(tokens[next]);
});
addEventListener("scroll", () => shown && place(), { passive: true });
if (tokens.length) tokens[0].tabIndex = 0;
