"use strict";

const byId = (id) => document.getElementById(id);
const list = byId("hits");
const dialog = byId("large");
const explains = list.dataset.explains === "yes";
const takesPictures = list.dataset.likes === "yes";

let hits = []; // those on the page
let words = ""; // that found them
let chosen = null; // {file} or {item, name}: the picture that others are to be like
let shown = -1; // place of the hit in the larger view
let request = null; // the search under way

// ------------------------------------------------------------------ searching

function address(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(given).toString();
  return query ? `${path}?${query}` : path;
}

function fields() {
  const like = chosen && !chosen.file ? chosen.item : null;
  return { q: byId("q").value.trim(), k: byId("k").value, where: byId("where").value.trim(), like };
}

async function search({ remember = true } = {}) {
  const asked = fields();
  const here = address("/", asked);
  if (remember && here !== location.pathname + location.search) history.pushState(null, "", here);
  if (request) request.abort();
  const own = (request = new AbortController());
  list.classList.add("busy");
  byId("status").textContent = "Searching …";
  try {
    const options = { signal: own.signal };
    if (chosen && chosen.file) Object.assign(options, { method: "POST", body: chosen.file });
    const response = await fetch(address("/search", asked), options);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    words = asked.q;
    show(answer);
  } catch (error) {
    if (own.signal.aborted) return;
    const lost = error instanceof TypeError; // of fetch: there was no answer
    fail(lost ? "itmkit app does not answer; is it still running?" : error.message);
  }
  if (request === own) list.classList.remove("busy");
}

function fail(message) {
  byId("error").textContent = message;
  byId("status").textContent = "";
  byId("note").textContent = "";
  hits = [];
  list.replaceChildren();
}

function show(answer) {
  hits = answer.hits;
  byId("error").textContent = "";
  const one = hits.length === 1 ? "picture" : "pictures";
  const listed = !words && !chosen;
  const how = listed ? "the first by path" : `best first, in ${answer.seconds.toFixed(2)} s`;
  const text = hits.length ? `${hits.length} ${one}, ${how}.` : "No picture matches the filter.";
  byId("status").textContent = text;
  byId("note").textContent = sentence(answer.note);
  list.replaceChildren(...hits.map(card));
}

const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text != null) element.textContent = text;
  return element;
}

const percent = (share) => (share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`);

function card(hit, place) {
  const item = make("li");
  const button = make("button");
  button.type = "button";
  const picture = make("img");
  picture.loading = "lazy";
  picture.alt = "";
  picture.src = `/picture/${hit.item}`;
  picture.addEventListener("error", () => { picture.alt = "cannot be read"; });
  button.append(picture, make("span", "name", hit.name.split("/").pop()));
  button.title = hit.name;
  if (hit.score != null) {
    const line = make("span", "score");
    if (hit.probability != null) line.append(make("span", "chance", percent(hit.probability)), " · ");
    line.append(hit.score.toFixed(3));
    button.append(line);
  }
  button.addEventListener("click", () => enlarge(place));
  item.append(button);
  return item;
}

// ------------------------------------------------------------------ larger view

function enlarge(place) {
  shown = place;
  const hit = hits[place];
  byId("large-name").textContent = hit.name;
  const picture = byId("large-picture");
  picture.src = `/picture/${hit.item}?size=large`;
  picture.alt = hit.name;
  const facts = Object.entries(hit.columns);
  if (hit.score != null) facts.unshift(["Score", hit.score.toFixed(4)]);
  if (hit.probability != null) facts.unshift(["Probability", percent(hit.probability)]);
  if (words) facts.unshift(["Words", words]);
  byId("facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
  byId("previous").disabled = place === 0;
  byId("next").disabled = place === hits.length - 1;
  explain(hit);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

async function explain(hit) {
  const map = byId("why-map");
  const place = shown;
  if (map.src) URL.revokeObjectURL(map.src);
  map.removeAttribute("src");
  byId("why").hidden = !(explains && words);
  if (byId("why").hidden) return;
  byId("why-title").textContent = `Why “${words}” has its score here`;
  byId("why-status").textContent = "Drawing …";
  await new Promise((resolve) => setTimeout(resolve, 200)); // the next one may be wanted at once
  if (place !== shown) return;
  let problem = "";
  try {
    const response = await fetch(address(`/explain/${hit.item}`, { q: words }));
    if (!response.ok) throw new Error((await response.json()).error);
    const content = await response.blob();
    if (place !== shown) return;
    map.alt = `Maps of the words of “${words}” over ${hit.name}`;
    map.src = URL.createObjectURL(content);
  } catch (error) {
    problem = error.message;
  }
  if (place === shown) byId("why-status").textContent = problem;
}

function step(by) {
  const place = shown + by;
  if (dialog.open && place >= 0 && place < hits.length) enlarge(place);
}

byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => {
  const back = list.children[shown];
  shown = -1;
  if (back) back.firstChild.focus();
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

// ------------------------------------------------------------------ pictures as queries

function choose(picture) {
  const preview = byId("chosen-picture");
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  chosen = picture;
  byId("chosen").hidden = !picture;
  if (!picture) return preview.removeAttribute("src");
  preview.src = picture.file ? URL.createObjectURL(picture.file) : `/picture/${picture.item}`;
  byId("chosen-name").textContent = picture.file ? picture.file.name : picture.name;
  return undefined;
}

function take(files) {
  const file = files && files[0];
  if (!file || !takesPictures) return;
  const most = Number(list.dataset.mostBytes);
  if (file.size > most) {
    fail(`${file.name} has more than ${most / 1e6} MB; expected a smaller file`);
    return;
  }
  choose({ file });
  search();
}

if (takesPictures) {
  byId("file").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  byId("like").addEventListener("click", () => {
    choose(hits[shown]);
    byId("q").value = "";
    dialog.close();
    search();
    scrollTo(0, 0);
  });
  byId("unchoose").addEventListener("click", () => { choose(null); search(); byId("q").focus(); });
  const isFile = (event) => event.dataTransfer && event.dataTransfer.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    byId("drop").hidden = true;
    if (!isFile(event)) return;
    event.preventDefault();
    if (dialog.open) dialog.close();
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
  });
}

// ------------------------------------------------------------------ address and form

function restore() {
  const given = new URLSearchParams(location.search);
  byId("q").value = given.get("q") || "";
  byId("where").value = given.get("where") || "";
  if ([...byId("k").options].some((one) => one.value === given.get("k"))) byId("k").value = given.get("k");
  const like = given.get("like");
  choose(/^\d+$/.test(like) && takesPictures ? { item: like, name: `picture ${like}` } : null);
  if (dialog.open) dialog.close();
  search({ remember: false });
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
for (const id of ["k", "where"]) byId(id).addEventListener("change", () => search());
addEventListener("popstate", restore);
restore();
