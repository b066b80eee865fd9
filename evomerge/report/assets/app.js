// The page: tabs, theme, the chosen candidate, following a live run.

let chosen = null;
let drawn = new Set(); // tabs that show the present data, candidate and theme

const tabs = [
  { id: "overview", fill: fillOverview },
  { id: "front", fill: () => { frontAxes(); findAxes(); fillNotes(); drawFront(); fillMembers(); drawParallel(); } },
  { id: "history", fill: () => { costOptions(); drawHistory(); } },
  { id: "niches", fill: drawNiches },
  { id: "lineage", fill: drawLineage },
  { id: "coefficients", fill: drawMap },
  { id: "validation", fill: drawValidation, isShown: () => data.validation !== null },
  { id: "failures", fill: fillFailures },
  { id: "environment", fill: fillEnvironment },
];
let current = tabs[0].id;

function fillNotes() {
  const shown = data.candidates;
  const others = shown.role.filter((role) => role !== "front").length;
  const hidden = shown.total - shown.front_left_out - shown.id.length;
  byId("front-note").textContent =
    `${count(shown.role.filter((role) => role === "front").length)} members` +
    (shown.front_left_out ? ` (${count(shown.front_left_out)} more between them are not shown)` : "") +
    `, ${count(others)} other candidates` +
    (hidden > 0 ? `; ${count(hidden)} more are not drawn (an even sample over the search is)` : "") +
    ". Higher is better.";
}

// --------------------------------------------------------------------- tabs

const shownTabs = () => tabs.filter((tab) => !tab.isShown || tab.isShown());

function buildTabs() {
  byId("tabs").replaceChildren(...shownTabs().map((tab) => make(
    "button",
    { type: "button", role: "tab", id: `tab-${tab.id}`, "aria-controls": tab.id, onclick: () => open(tab.id) },
    byId(tab.id).dataset.title,
  )));
  for (const tab of tabs) {
    const panel = byId(tab.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", `tab-${tab.id}`);
    panel.hidden = true;
  }
}

function open(id) {
  current = id;
  for (const button of byId("tabs").children) {
    const isOpen = button.id === `tab-${id}`;
    button.setAttribute("aria-selected", String(isOpen));
    button.tabIndex = isOpen ? 0 : -1;
    byId(button.getAttribute("aria-controls")).hidden = !isOpen;
    if (isOpen) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const top = document.querySelector("header").offsetHeight; // below it the tabs stick to the window
  if (window.scrollY > top) window.scrollTo(0, top);
  document.querySelector(".columns").classList.toggle("with-details", "details" in byId(id).dataset);
  refresh();
}

/** Fill the open tab if it shows something old. */
function refresh() {
  if (drawn.has(current)) return;
  tabs.find((tab) => tab.id === current).fill();
  drawn.add(current);
}

byId("tabs").addEventListener("keydown", (event) => {
  const buttons = [...byId("tabs").children];
  const at = buttons.findIndex((button) => button.id === `tab-${current}`);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const button = buttons[(to + buttons.length) % buttons.length];
  open(button.getAttribute("aria-controls"));
  button.focus();
});

for (const [select, redraw] of [
  ["front-x", drawFront], ["front-y", drawFront], ["cost", drawHistory], ["niches-task", drawNiches],
  ["map-candidate", drawMap], ["map-parameter", drawMap], ["validation-objective", drawValidation],
]) byId(select).addEventListener("change", redraw);

// ------------------------------------------------------------------ details

/** Show a candidate, or none for null, beside the plots. */
function choose(id) {
  const focused = document.activeElement;
  const wasIn = byId("members").contains(focused);
  chosen = id;
  drawn = new Set([...drawn].filter((tab) => !["front", "coefficients"].includes(tab)));
  if (data.recipes.maps[id]) byId("map-candidate").value = String(id);
  fillDetails();
  if (id !== null && !("details" in byId(current).dataset)) {
    open("front");
    byId("tab-front").focus();
  }
  refresh();
  if (wasIn) byId("members").querySelector(`tr[data-id="${id}"] button`)?.focus();
}

byId("details-close").addEventListener("click", () => { choose(null); byId(`tab-${current}`).focus(); });

function fillDetails() {
  const body = byId("details-body");
  byId("details-hint").hidden = chosen !== null;
  byId("details-close").hidden = chosen === null;
  byId("details").classList.toggle("chosen", chosen !== null);
  byId("details-title").textContent = chosen === null ? "Candidate" : `Candidate ${chosen}`;
  if (chosen === null) { body.replaceChildren(); return; }
  const row = rowOf().get(chosen);
  const list = make("dl");
  if (row === undefined) fillList(list, [["", "an ancestor that is not drawn"]]);
  else fillList(list, facts(row));
  body.replaceChildren(list, ...recipeParts(chosen), ...exportParts(chosen));
}

function facts(row) {
  const shown = data.candidates;
  const parents = make("span", {}, ...(shown.parents[row].length
    ? shown.parents[row].map((id) => candidateButton(id)) : ["none"]));
  const names = { front: "on the front", model: "an unmerged model", founder: "a founder", other: "dominated" };
  const pairs = [
    ["Place", names[shown.role[row]]],
    ["Origin", shown.origin[row] || "–"],
    ["Parents", parents],
    ...data.objectives.map((o, m) => [o.name, `${show(shown.objectives[m][row])} (n = ${count(o.n)})`]),
  ];
  if (shown.feasible) {
    pairs.push(["Keeps constraints", shown.feasible[row] ? "yes" : "no"]);
    data.constraints.forEach((text, c) => pairs.push([text, show(shown.measured[c][row])]));
  }
  pairs.push(["Recipe", make("code", {}, shown.digest[row])]);
  if (shown.seconds[row] !== null) pairs.push(["Merged and scored in", `${show(shown.seconds[row])} s`]);
  return pairs;
}

function recipeParts(id) {
  const recipe = data.recipes.summaries[id];
  if (!recipe) return [];
  const table = make("table");
  const numbers = ["mean", "lowest", "highest"].map((text) => ({ text, number: true }));
  fillTable(table, ["coefficient", ...numbers], recipe.rows.map(([label, ...values]) =>
    [make("span", { className: "breaks" }, label), ...values.map((value) => show(value))]));
  const how = `${recipe.operator} of ${recipe.sources.join(", ")}; ${count(recipe.groups)} group` +
    `${recipe.groups > 1 ? "s" : ""} (${recipe.grouping})${recipe.settings ? `; ${recipe.settings}` : ""}`;
  return [make("h3", {}, "Recipe"), make("p", { className: "breaks" }, how), make("div", { className: "scroll" }, table)];
}

function exportParts(id) {
  const command = `${data.command} --pick candidate:${id} --out merged-${id}`;
  const code = make("code", { className: "command" }, command);
  const state = make("span", { role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command);
      state.textContent = " copied";
    } catch { // not allowed for this page: the text is selected instead
      getSelection().selectAllChildren(code);
      state.textContent = " selected; copy it with Ctrl-C";
    }
  };
  return [make("h3", {}, "Export"), code, make("button", { type: "button", onclick: copy }, "Copy command"), state];
}

// -------------------------------------------------------------------- theme

function theme() {
  return document.documentElement.dataset.theme;
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  drawn = new Set();
}

const system = matchMedia("(prefers-color-scheme: dark)");
let isChosen = false; // a choice by the button outlasts a change of the system
byId("theme").addEventListener("click", () => {
  isChosen = true;
  setTheme(theme() === "dark" ? "light" : "dark");
  refresh();
});
system.addEventListener("change", () => {
  if (isChosen) return;
  setTheme(system.matches ? "dark" : "light");
  refresh();
});

// --------------------------------------------------------------------- live

const POLL_MS = 2000;

async function follow() {
  const state = byId("live");
  state.hidden = false;
  let version = "";
  for (;;) {
    try {
      const answer = await fetch(`${live}?seen=${encodeURIComponent(version)}`, { cache: "no-store" });
      if (answer.status === 200) {
        data = await answer.json();
        version = answer.headers.get("ETag") || "";
        takeNew();
      }
      const text = answer.ok ? "Live: follows the run" : `Live: ${await answer.text()}`;
      if (state.textContent !== text) state.textContent = text;
    } catch {
      state.textContent = "Live: the server is gone; this is the last it sent";
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function takeNew() {
  drawn = new Set();
  if (byId("tabs").children.length !== shownTabs().length) { // the first validation figures came
    buildTabs();
    open(current);
  }
  fillHead();
  fillDetails();
  refresh();
}

function fillHead() {
  byId("run").textContent = data.run;
  byId("made").textContent = `evomerge report of ${data.made}`;
}

setTheme(system.matches ? "dark" : "light");
fillHead();
buildTabs();
open(tabs.some((tab) => `#${tab.id}` === location.hash && byId(`tab-${tab.id}`)) ? location.hash.slice(1) : "overview");
if (live) follow();
