// Text, elements, tables, colours: what every part of the page uses. No string of a run is ever
// parsed as HTML: elements get textContent, plots get plain().

let data = JSON.parse(document.getElementById("data").textContent);
const live = document.getElementById("data").dataset.live;
const byId = (id) => document.getElementById(id);

/** Return a new element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Return text as plotly shows it unchanged: it understands a little HTML. */
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function cut(text, most) {
  const whole = String(text);
  return whole.length > most ? whole.slice(0, most - 1) + "…" : whole;
}

/** Return a number for people; scores of many examples are worth four decimals. */
function show(number, decimals = data.objectives.some(({ n }) => n >= 2000) ? 4 : 3) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size >= 1e6 || (size > 0 && size < 0.1 ** decimals)) return number.toExponential(1).replace("-", "−");
  const kept = size >= 1000 ? 0 : size >= 10 ? Math.min(2, decimals) : decimals;
  return number.toFixed(kept).replace("-", "−");
}

const count = (number) => Number(number).toLocaleString("en-US");
const signed = (number) => (number > 0 ? "+" : "") + show(number);
const range = (pair, format) => `[${format(pair[0])}, ${format(pair[1])}]`;

/** Fill a dl with [label, text] pairs. */
function fillList(list, pairs) {
  list.replaceChildren(
    ...pairs.flatMap(([label, text]) => [make("dt", {}, label), make("dd", {}, text)]),
  );
}

/** Fill a table: heads are texts or {text, number}; rows are arrays of nodes or texts. */
function fillTable(table, heads, rows) {
  const names = heads.map((head) => (typeof head === "object" ? head : { text: head }));
  const cell = (content, i) =>
    make("td", { className: names[i].number ? "number" : names[i].className || "" }, content);
  const headCell = (head) =>
    make("th", { scope: "col", className: head.number ? "number" : "" }, head.node || head.text);
  table.replaceChildren(
    make("thead", {}, make("tr", {}, ...names.map(headCell))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))),
  );
}

/** Fill a select, keeping what was chosen where it is still offered. */
function fillSelect(select, options, fallback) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  const values = options.map(([value]) => String(value));
  if (values.includes(before)) select.value = before;
  else if (fallback !== undefined) select.value = String(fallback);
}

/** Return a button that chooses a candidate. */
function candidateButton(id, text = `${id}`) {
  return make(
    "button",
    { type: "button", className: "link", "aria-label": `Candidate ${id}`, onclick: () => choose(id) },
    text,
  );
}

const rowOf = () => {
  const rows = new Map();
  data.candidates.id.forEach((id, row) => rows.set(id, row));
  return rows;
};

// ------------------------------------------------------------------ plots

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const LINES = ["front", "founder", "pick", "other", "model"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const isNarrow = () => window.innerWidth < 600;

function axis(title, more = {}) {
  return {
    title: { text: plain(cut(title, 60)), standoff: 8 },
    gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"),
    automargin: true, ...more,
  };
}

/** Draw or redraw a plot; zoom stays as it is while `keep` is the same. Return whether it is new. */
function draw(id, traces, layout, keep = id) {
  const hasLegend = layout.showlegend !== false &&
    traces.filter((trace) => trace.type === "scatter" && trace.showlegend !== false).length > 1;
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), family: "system-ui, sans-serif", size: isNarrow() ? 12 : 13 },
    margin: { l: 56, r: 16, t: 20, b: !hasLegend ? 50 : isNarrow() ? 120 : 90 }, hovermode: "closest", uirevision: keep,
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 },
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
  };
  const config = { responsive: true, displaylogo: false, scrollZoom: false, showSendToCloud: false,
    displayModeBar: isNarrow() ? false : "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const place = byId(id);
  const isNew = !place.classList.contains("js-plotly-plot");
  Plotly.react(place, traces, { ...base, ...layout }, config);
  if (isNew) {
    place.on("plotly_click", (event) => {
      const found = event.points.map((point) => point.customdata).find((id) => Number.isInteger(id));
      if (found !== undefined) choose(found);
    });
  }
  return isNew;
}

// Pale or dark throughout, so that numbers in the page's own colour are readable on them.
const diverging = () =>
  theme() === "dark"
    ? [[0, "#8a4a2a"], [0.5, "#2a2e35"], [1, "#23588f"]]
    : [[0, "#e8a27c"], [0.5, "#f7f7f7"], [1, "#7fb2e5"]];

const rising = () =>
  theme() === "dark" ? [[0, "#22262d"], [1, "#7db8f5"]] : [[0, "#eef1f5"], [1, "#0b4f94"]];
