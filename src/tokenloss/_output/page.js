"use strict";
const text = document.getElementById("text");
const card = document.getElementById("card");
const tokens = text.getElementsByTagName("i");
let data, shown = null, chosen = 0;

/* What the page knows of each token is read when first asked for: a long text is there sooner. */
function load() {
  data = JSON.parse(document.getElementById("data").textContent);
  let place = 0;
  for (const token of tokens) token.place = place++;
  if (data.models) card.className = "wide";
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

/* The alternatives of a model and the target, which has this logarithm. null is not known: of responses of servers,
   whose alternatives have names, where ids may be missing. */
function alternatives(at, text, logarithm, model) {
  const id = data.id[at], named = model.named, rows = make("table", "");
  let listed = false;
  for (let k = at * model.k; k < (at + 1) * model.k; k++) {
    const other = model.top[k];
    if (named ? model.logprob[k] === null : other < 0) continue;
    const isTarget = id === null || other === null ? text !== null && named[k] === text : other === id;
    rows.append(alternative(other, named ? named[k] : data.text[other], model.logprob[k], isTarget));
    listed ||= isTarget;
  }
  if (rows.firstChild && !listed) rows.append(alternative(id, named ? text : data.text[id], logarithm, true));
  return rows.firstChild ? [rows] : [];
}

/* What a model predicted: its figures, to which others are added, and its alternatives. */
function predicted(at, text, model, others = []) {
  const facts = make("dl", ""), loss = model.loss[at], chance = loss === null ? null : -loss;
  const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  fact("probability", percent(chance));
  if (model.rank && model.rank[at] !== null) fact("rank", model.rank[at] > 0 ? String(model.rank[at]) : "none");
  fact("loss", nats(loss));
  for (const [name, value] of others) fact(name, value);
  return [facts, ...alternatives(at, text, chance, model)];
}

function spot(at) {
  if (data.places) {
    const known = Object.entries(data.places).filter(([, values]) => values[at] >= 0);
    return known.map(([name, values]) => `${name} ${values[at]}`).join(" · ");
  }
  return data.position ? `response ${data.sequence[at]} · position ${data.position[at]}` : `position ${at}`;
}

function fill(token) {
  const at = token.place, id = data.id[at], text = data.token ? data.token[at] : data.text[id];
  const head = make("header", "", make("bdi", "", visible(text ?? String(id ?? "?"))),
    make("small", "", (id === null ? "" : `id ${id} · `) + spot(at)));
  card.replaceChildren(head);
  if (token.classList.contains("ignored")) {
    card.append(make("dl", "", make("dt", "", `ignored: no part of the ${data.models ? "comparison" : "loss"}`)));
  } else if (data.models) {
    const model = data.models[chosen];
    const side = (name, of) => make("section", "", make("bdi", "name", visible(name)), ...predicted(at, text, of));
    card.append(make("dl", "", make("dt", "", "KL divergence"), make("dd", "", nats(model.kl[at]))),
      make("div", "sides", side("base", data.base), side(model.name, model)));
  } else {
    card.append(...predicted(at, text, data, data.entropy ? [["entropy", nats(data.entropy[at])]] : []));
  }
}

/* Show the divergences of another model. */
function choose(number) {
  if (!data) load();
  const names = [..."0123456789"].map((shade) => "s" + shade).concat("inf", "nan", "ignored");
  const before = data.models[chosen].shades, after = data.models[number].shades;
  const name = (letter) => names[parseInt(letter, 36)];
  for (const token of tokens) {
    const at = token.place;
    if (before[at] !== after[at]) token.classList.replace(name(before[at]), name(after[at]));
  }
  const heads = document.querySelectorAll("body > section");
  heads[chosen].hidden = true;
  heads[number].hidden = false;
  chosen = number;
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
document.getElementById("model")?.addEventListener("change", (event) => choose(+event.target.value));
addEventListener("scroll", () => shown && place(), { passive: true });
if (tokens.length) tokens[0].tabIndex = 0;
