"use strict";
/* The page holds its text as plain paragraphs, which browsers lay out, find in and print by themselves. What is known
   of each token stands in #data, as columns of JSON, compressed. Of the paragraphs near the window, each token becomes
   an <i> in its color; everything else works on columns, so that it knows the whole text. */
const LOOKS = [..."0123456789"].map((shade) => "s" + shade)
  .concat("inf", "nan", "ignored", "c1", "c2", "c3", "c4", "c5");
const text = document.getElementById("text");
const card = document.getElementById("card");
const paragraphs = [...text.getElementsByTagName("p")]; /* in parts, which are colored as a whole */
let data; /* columns */
let whole = "", starts; /* all paragraphs as one string, and where each token starts there */
let model = 0, shown = null; /* the chosen model, and the token that the card is about */
let current = 0; /* the number of the token that Tab reaches; arrows move on from it */
let hits = new Set(); /* numbers of tokens that were searched for */

async function load() {
  const letters = atob(document.getElementById("data").textContent), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  const json = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  data = await new Response(json).json();
  for (const column of Object.values(data.places)) { /* they are steps from token to token */
    for (let at = 1; at < column.length; at++) column[at] += column[at - 1];
  }
  starts = new Uint32Array(data.lengths.length);
  paragraphs.forEach((paragraph, number) => {
    if (number && paragraph.className !== "on") whole += "\n"; /* a search finds nothing across sequences */
    let start = whole.length;
    paragraph.number = number;
    for (let at = data.first[number]; at < after(paragraph); at++) {
      starts[at] = start;
      start += Math.abs(data.lengths[at]);
    }
    whole += paragraph.textContent;
  });
}

/* The number of the token after a paragraph. */
const after = (paragraph) => data.first[paragraph.number + 1] ?? data.lengths.length;

const end = (at) => starts[at] + Math.abs(data.lengths[at]);

/* -- the text ---------------------------------------------------------------------------------------------------- */

function make(name, className, ...children) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
}

/* The number of the last item of a sorted list that is at most this value. */
function last(list, value) {
  let low = 0, high = list.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] <= value) low = middle;
    else high = middle;
  }
  return low;
}

function element(at) {
  const isId = data.lengths[at] < 0, string = whole.slice(starts[at], end(at));
  let look = LOOKS[parseInt(data.models[model].shades[at], 36)];
  if (isId) look += " id";
  else if (/^[\p{Cf}\p{Me}\p{Mn}]*$/u.test(string)) look += " thin"; /* has no width of its own */
  else if (/^\s*\n\s*$/.test(string)) look += " br";
  if (hits.has(at)) look += " hit";
  const token = make("i", look, isId ? string.slice(0, -1) : string);
  token.at = at;
  if (at === current) token.tabIndex = 0;
  return token;
}

/* Make tokens of the plain text of a part. */
function fill(part) {
  for (const paragraph of part.getElementsByTagName("p")) {
    const tokens = document.createDocumentFragment();
    for (let at = data.first[paragraph.number]; at < after(paragraph); at++) {
      tokens.append(element(at));
      if (data.lengths[at] < 0) tokens.append(" ");
    }
    paragraph.replaceChildren(tokens);
  }
  part.filled = true;
}

const textOf = (paragraph) => whole.slice(starts[data.first[paragraph.number]], end(after(paragraph) - 1));

/* Make plain text of a part again, so that a page that is read to its end does not grow. */
function empty(part) {
  if (!part.filled || part === partOf(current) || part.contains(shown)) return;
  for (const paragraph of part.getElementsByTagName("p")) paragraph.textContent = textOf(paragraph);
  part.filled = false;
}

const near = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (!isIntersecting) empty(target);
    else if (!target.filled) fill(target);
  }
}, { rootMargin: "1000px 0px" });

/* Tell browsers about how high the parts are that they have not laid out, for the length of the scroll bar. */
function estimate() {
  const perLine = text.clientWidth / 8.5;
  for (const part of text.children) {
    let lines = 0;
    for (const paragraph of part.getElementsByTagName("p")) {
      for (const line of textOf(paragraph).split("\n")) lines += Math.ceil(line.length / perLine) || 1;
    }
    part.style.containIntrinsicSize = `auto ${32 * lines}px`;
  }
}

function observe() {
  for (const part of text.children) near.observe(part);
}

const partOf = (at) => paragraphs[last(data.first, at)].parentElement;

function tokenAt(at) {
  const number = last(data.first, at), part = paragraphs[number].parentElement;
  if (!part.filled) fill(part);
  return paragraphs[number].getElementsByTagName("i")[at - data.first[number]];
}

/* Draw all tokens anew that are drawn. */
function refill() {
  const at = shown?.at;
  const focused = text.contains(document.activeElement);
  for (const part of text.children) if (part.filled) fill(part);
  if (at === undefined) return;
  show(tokenAt(at));
  if (focused) shown.focus({ preventScroll: true });
}

/* -- the card of a token ----------------------------------------------------------------------------------------- */

/* Spaces and controls of a token as signs, so that they can be told apart. */
function visible(string) {
  const signs = { " ": "␣", "\n": "↵", "\t": "⇥", "\x7f": "␡" };
  const long = string.length > 200 ? string.slice(0, 200) + "…" : string;
  return long.replace(/[\0- \x7f]/g, (c) => signs[c] ?? String.fromCharCode(0x2400 + c.charCodeAt()));
}

/* The name of a class: its text, else its id, which looks different. */
function named(number) {
  const string = data.class_text[number], id = data.class_id[number];
  if (string === "") return make("bdi", "id", "no text");
  if (string !== null) return make("bdi", "", visible(string));
  return make("bdi", "id", id === null ? "?" : "#" + id);
}

/* null is nan: JSON has none. */
function nats(number) {
  if (number === null) return "nan";
  return (isFinite(number) ? String(+number.toPrecision(5)) : number < 0 ? "-inf" : "inf") + " nats";
}

function percent(share) {
  if (share === null) return "nan";
  return share > 0 && share < 1e-4 ? share.toExponential(2) : +(100 * share).toPrecision(3) + " %";
}

function alternative(number, share, isTarget) {
  const name = make("td", "", named(number)), id = data.class_text[number] === null ? null : data.class_id[number];
  name.style.setProperty("--share", share ?? 0);
  const cells = [make("td", "id", id === null ? "" : "#" + id), make("td", "", share === null ? "" : percent(share))];
  return make("tr", isTarget ? "target" : "", name, ...cells);
}

/* Whether two classes are the same: by their ids, else by their text. */
function same(one, other) {
  const ids = [data.class_id[one], data.class_id[other]], names = [data.class_text[one], data.class_text[other]];
  return ids.includes(null) ? names[0] !== null && names[0] === names[1] : ids[0] === ids[1];
}

/* The alternatives of a model and the target, which has this probability. */
function alternatives(at, share, of) {
  const rows = make("table", ""), target = data.target[at];
  let listed = false;
  for (let k = at * of.k; k < (at + 1) * of.k; k++) {
    if (of.top[k] < 0) continue;
    const isTarget = same(of.top[k], target);
    rows.append(alternative(of.top[k], of.chance[k] === null ? null : of.chance[k] / 100, isTarget));
    listed ||= isTarget;
  }
  if (rows.firstChild && !listed) rows.append(alternative(target, share, true));
  return rows.firstChild ? [rows] : [];
}

/* What a model predicted: its metrics and its alternatives. */
function predicted(at, of) {
  const facts = make("dl", ""), nll = of.nll[at], share = nll === null ? null : Math.exp(-nll);
  const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  fact("probability", percent(share));
  if (of.rank && of.rank[at] !== null) fact("rank", of.rank[at] > 0 ? String(of.rank[at]) : "none");
  fact("nll", nats(nll));
  if (of.entropy) fact("entropy", nats(of.entropy[at]));
  return [facts, ...alternatives(at, share, of)];
}

/* A span by a model with tokens of its own: its loss, and the tokens with their probabilities. */
function laid(at, of) {
  const rows = make("table", ""), facts = make("dl", "", make("dt", "", "nll"), make("dd", "", nats(of.nll[at])));
  for (let k = of.first[at]; k < of.first[at + 1]; k++) {
    const nll = of.token_nll[k];
    rows.append(alternative(of.token[k], nll === null ? null : Math.exp(-nll), false));
  }
  return make("section", "", make("bdi", "name", visible(of.name)), facts, rows);
}

function spot(at) {
  const known = Object.entries(data.places).filter(([, column]) => column[at] >= 0);
  const called = (name) => (name === "sequence" ? data.noun : name);
  const place = (name, number) => (name === "file" && data.files[number]) || `${called(name)} ${number}`;
  return known.map(([name, column]) => place(name, column[at])).join(" · ");
}

function describe(at) {
  const target = data.target[at], of = data.models[model];
  const id = data.class_text[target] === null ? null : data.class_id[target];
  const head = make("header", "", named(target), make("span", "id", id === null ? "" : "#" + id));
  card.replaceChildren(head, make("small", "", spot(at)));
  const isPair = Boolean(data.base || of.sides);
  card.classList.toggle("wide", isPair);
  if (LOOKS[parseInt(of.shades[at], 36)] === "ignored") {
    card.append(make("dl", "", make("dt", "", `ignored: no part of the ${isPair ? "comparison" : "loss"}`)));
  } else if (of.sides) {
    card.append(make("dl", "", make("dt", "", "difference"), make("dd", "", nats(of.difference[at]))),
      make("div", "sides", ...of.sides.map((side) => laid(at, side))));
  } else if (data.base) {
    const side = (name, of) => make("section", "", make("bdi", "name", visible(name)), ...predicted(at, of));
    card.append(make("dl", "", make("dt", "", of.quantity), make("dd", "", nats(of.kl[at]))),
      make("div", "sides", side("base", data.base), side(of.name, of)));
  } else {
    card.append(...predicted(at, of));
  }
}

/* Below the token, else above it, else as high as it must be; nowhere if the token is not in the window. */
function place() {
  const lines = [...shown.getClientRects()], margin = 8;
  const box = lines.find(({ top, bottom }) => bottom > 0 && top < innerHeight);
  card.hidden = !box;
  if (card.hidden) return;
  const right = document.documentElement.clientWidth - card.offsetWidth - margin;
  const lowest = innerHeight - card.offsetHeight - margin;
  const below = box.bottom + margin, above = box.top - card.offsetHeight - margin;
  const top = below <= lowest ? below : above >= margin ? above : lowest;
  card.style.left = Math.max(margin, Math.min(box.left, right)) + "px";
  card.style.top = Math.max(margin, top) + "px";
}

function show(token) {
  for (const name of ["aria-describedby", "role"]) shown?.removeAttribute(name);
  shown?.classList.remove("shown");
  shown = token;
  if (!token) {
    card.hidden = true;
    return;
  }
  token.classList.add("shown");
  token.setAttribute("role", "button"); /* what has a description must have a role */
  token.setAttribute("aria-describedby", "card");
  describe(token.at);
  place();
}

/* -- ways to a token --------------------------------------------------------------------------------------------- */

/* Let Tab reach this token instead of another. */
function reach(at) {
  tokenAt(current).removeAttribute("tabindex");
  current = at;
  tokenAt(at).tabIndex = 0;
}

function focus(at) {
  if (at < 0 || at >= data.lengths.length) return;
  reach(at);
  tokenAt(at).focus();
}

/* Jump to a token. The focus stays on a button or in a box, so that it can be used again. */
function jump(at) {
  const token = tokenAt(at), stays = document.activeElement?.closest("#tools");
  reach(at);
  token.scrollIntoView({ block: "center" });
  if (stays) show(token);
  else token.focus({ preventScroll: true });
  link(at);
}

/* Let the address lead to this token. */
function link(at) {
  history.replaceState(null, "", "#token-" + at);
}

/* Buttons that go through a list of tokens. */
class Steps {
  constructor(id) {
    const group = document.getElementById(id), [before, next] = (this.buttons = group.querySelectorAll("button"));
    this.output = group.querySelector("output");
    before.addEventListener("click", () => this.go(-1));
    next.addEventListener("click", () => this.go(1));
    this.reset([]);
  }

  reset(list) {
    this.list = list;
    this.step = -1;
    for (const button of this.buttons) button.disabled = !list.length;
    this.say();
  }

  go(by) {
    const size = this.list.length;
    if (!size) return;
    this.step = this.step < 0 && by < 0 ? size - 1 : (this.step + by + size) % size;
    this.say();
    jump(this.list[this.step]);
  }

  say() {
    const size = this.list.length.toLocaleString("en");
    this.output.value = (this.step < 0 ? "–" : (this.step + 1).toLocaleString("en")) + " of " + size;
  }
}

const worst = new Steps("worst"), found = new Steps("search");

/* Find all tokens where the text matches, be it in capitals or not. */
function search(query) {
  const firsts = [];
  hits = new Set();
  if (query) {
    const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
    for (const { index, 0: match } of whole.matchAll(pattern)) {
      const first = last(starts, index);
      firsts.push(first);
      for (let at = first; starts[at] < index + match.length; at++) hits.add(at);
    }
  }
  found.reset(firsts);
  if (!query) found.output.value = "";
  refill();
}

/* The next place where a sequence of this number starts: several files may have one. */
function sequence(number) {
  const firsts = data.first.filter((at, paragraph) => paragraphs[paragraph].className !== "on");
  const fitting = firsts.filter((at) => data.places.sequence[at] === number);
  if (fitting.length) jump(fitting.find((at) => at > current) ?? fitting[0]);
  return fitting.length > 0;
}

/* Show the predictions of another model. */
function choose(number) {
  document.querySelectorAll(".model").forEach((head, other) => (head.hidden = other !== number));
  model = number;
  worst.reset(data.models[model].worst);
  refill();
}

/* -- events ------------------------------------------------------------------------------------------------------ */

const tokenOf = (event) => event.target.closest("i");
const focused = () => (text.contains(document.activeElement) ? document.activeElement : null);
const byId = (id) => document.getElementById(id);

function listen() {
  text.addEventListener("pointerover", (event) => tokenOf(event) && show(tokenOf(event)));
  text.addEventListener("pointerleave", () => show(focused()));
  text.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    focus(token.at);
    link(token.at);
  });
  text.addEventListener("focusin", (event) => event.target.at >= 0 && show(event.target));
  text.addEventListener("focusout", () => show(null));
  byId("model")?.addEventListener("change", (event) => choose(+event.target.value));
  byId("query").addEventListener("input", (event) => search(event.target.value));
  byId("query").addEventListener("keydown", (event) => event.key === "Enter" && found.go(event.shiftKey ? -1 : 1));
  byId("sequence").addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.target.setAttribute("aria-invalid", !sequence(parseInt(event.target.value)));
  });
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("keydown", onKey);
  addEventListener("hashchange", followLink);
  addEventListener("scroll", () => shown && place(), { passive: true });
  addEventListener("beforeprint", () => {
    near.disconnect();
    [...text.children].forEach(fill);
  });
  addEventListener("afterprint", observe);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = tokenOf(event)?.at, isBox = event.target.matches("input, select"), by = event.shiftKey ? -1 : 1;
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: data.lengths.length - 1 }[event.key];
  const keys = { w: () => worst.go(by), n: () => found.go(by), "/": () => byId("query").select() };
  if (!byId("sequences").hidden) keys.s = () => byId("sequence").select();
  const act = at >= 0 && next !== undefined ? () => focus(next) : isBox ? undefined : keys[event.key.toLowerCase()];
  if (event.key === "Escape") {
    show(null);
    document.activeElement.blur();
  }
  if (!act) return;
  event.preventDefault();
  act();
}

/* A link may end in #token-8, or as the headings of sequences say. */
function followLink() {
  const at = parseInt(location.hash.match(/^#token-(\d+)$/)?.[1]);
  if (at < data.lengths.length) jump(at);
  else text.querySelector(":target")?.scrollIntoView();
}

async function start() {
  try {
    await load();
  } catch (error) {
    document.querySelector("header").append(make("p", "note", `This browser cannot color the tokens: ${error}`));
    return;
  }
  estimate();
  observe();
  if (paragraphs.length) fill(text.children[0]);
  worst.reset(data.models[model].worst);
  found.output.value = "";
  const sequences = new Set(data.places.sequence);
  sequences.delete(-1);
  byId("sequences").hidden = sequences.size < 2;
  byId("sequences").getElementsByTagName("output")[0].value = "of " + sequences.size.toLocaleString("en");
  byId("tools").hidden = false;
  listen();
  followLink();
}

const ready = start();
