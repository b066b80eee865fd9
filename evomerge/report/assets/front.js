// The front: scatter plot, table of members, parallel coordinates.

const NUMBER = "number"; // the axis that counts candidates

function frontAxes() {
  const names = data.objectives.map((objective, m) => [String(m), objective.name]);
  const options = [...names, [NUMBER, "candidate number"]];
  const first = names.length > 1 ? "0" : NUMBER;
  fillSelect(byId("front-x"), options, first);
  fillSelect(byId("front-y"), options, names.length > 1 ? "1" : "0");
}

const column = (key) => (key === NUMBER ? data.candidates.id : data.candidates.objectives[Number(key)]);
const axisName = (key) => {
  if (key === NUMBER) return "candidate number";
  const objective = data.objectives[Number(key)];
  return `${objective.name} (mean of ${count(objective.n)} examples)`;
};

function hoverText(row) {
  const shown = data.candidates;
  const values = data.objectives.map(
    (objective, m) => `${plain(cut(objective.name, 40))} ${show(shown.objectives[m][row])}`,
  );
  return [`candidate ${shown.id[row]}`, ...values, plain(cut(shown.origin[row], 60))].join("<br>");
}

function frontTrace(role, name, marker, x, y, more = {}) {
  const rows = data.candidates.role.flatMap((found, row) => (found === role ? [row] : []));
  return {
    type: "scatter", mode: "markers", name, marker,
    x: rows.map((row) => x[row]), y: rows.map((row) => y[row]),
    customdata: rows.map((row) => data.candidates.id[row]),
    text: rows.map(hoverText), hoverinfo: "text", ...more,
  };
}

function drawFront() {
  const [keyX, keyY] = [byId("front-x").value, byId("front-y").value];
  const [x, y] = [column(keyX), column(keyY)];
  const isStaircase = data.objectives.length === 2 && keyX !== keyY && ![keyX, keyY].includes(NUMBER);
  const labels = new Map(Object.entries(data.candidates.models).map(([name, id]) => [id, name]));
  const chosenRow = chosen === null ? undefined : rowOf().get(chosen);
  const edge = { color: colour("page"), width: 1 };
  const front = frontTrace("front", "front", { color: colour("front"), size: 9, line: edge }, x, y);
  if (isStaircase) {
    front.mode = "lines+markers"; // the edge of what is dominated; members come by falling first objective
    front.line = { color: colour("front"), width: 1, shape: keyX === "0" ? "hv" : "vh" };
  }
  const traces = [
    frontTrace("other", "dominated", { color: colour("other"), size: 5, opacity: 0.5 }, x, y),
    frontTrace("founder", "other founders", { color: colour("founder"), size: 10, symbol: "diamond" }, x, y),
    front,
    modelTrace(labels, x, y),
    pickTrace(x, y),
  ];
  if (chosenRow !== undefined) {
    traces.push({
      type: "scatter", mode: "markers", name: "chosen", x: [x[chosenRow]], y: [y[chosenRow]],
      marker: { size: 20, symbol: "circle-open", color: colour("accent"), line: { width: 3 } },
      hoverinfo: "skip",
    });
  }
  const layout = { xaxis: axis(axisName(keyX)), yaxis: axis(axisName(keyY)) };
  draw("front-plot", traces, layout, `${keyX}/${keyY}`);
}

const LABEL_PLACES = ["top center", "bottom center", "middle right", "middle left"]; // models may be near each other

/** The unmerged models with their names, on the front or not. */
function modelTrace(labels, x, y) {
  const rows = data.candidates.id.flatMap((id, row) => (labels.has(id) ? [row] : []));
  return {
    type: "scatter", mode: "markers+text", name: "models",
    marker: { color: colour("model"), size: 10, symbol: "square" },
    x: rows.map((row) => x[row]), y: rows.map((row) => y[row]),
    customdata: rows.map((row) => data.candidates.id[row]),
    text: rows.map((row) => plain(cut(labels.get(data.candidates.id[row]), 24))),
    hovertext: rows.map(hoverText), hoverinfo: "text", textposition: rows.map((_, i) => LABEL_PLACES[i % 4]), cliponaxis: false,
  };
}

function pickTrace(x, y) {
  const rows = rowOf();
  const picks = data.summary.picks.filter((pick) => rows.has(pick.candidate));
  return {
    type: "scatter", mode: "markers", name: "best of each objective, knee", hoverinfo: "text",
    marker: { color: colour("pick"), size: 15, symbol: "star-open", line: { width: 2 } },
    x: picks.map((pick) => x[rows.get(pick.candidate)]),
    y: picks.map((pick) => y[rows.get(pick.candidate)]),
    customdata: picks.map((pick) => pick.candidate),
    text: picks.map((pick) => `${plain(pick.label)}<br>${hoverText(rows.get(pick.candidate))}`),
  };
}

// --------------------------------------------------------------- table

let order = { column: 1, falls: true };

function fillMembers() {
  const shown = data.candidates;
  const rows = shown.role.flatMap((role, row) => (role === "front" ? [row] : []));
  const key = (row) => (order.column === 0 ? shown.id[row] : shown.objectives[order.column - 1][row]);
  rows.sort((a, b) => (order.falls ? key(b) - key(a) : key(a) - key(b)));
  const names = ["candidate", ...data.objectives.map((objective) => objective.name)];
  const heads = names.map((name, i) => ({ number: true, node: sortButton(name, i) }));
  fillTable(
    byId("members"),
    [...heads, { text: "origin", className: "soft" }],
    rows.map((row) => [
      candidateButton(shown.id[row]),
      ...shown.objectives.map((values) => show(values[row])),
      cut(shown.origin[row], 60),
    ]),
  );
  [...byId("members").querySelectorAll("th")].forEach((head, i) => {
    if (i === order.column) head.setAttribute("aria-sort", order.falls ? "descending" : "ascending");
  });
  [...byId("members").tBodies[0].rows].forEach((line, i) => {
    line.dataset.id = shown.id[rows[i]];
    line.classList.toggle("chosen", shown.id[rows[i]] === chosen);
  });
}

function sortButton(name, index) {
  const mark = index !== order.column ? "" : order.falls ? " ▾" : " ▴";
  const sort = () => {
    order = { column: index, falls: index === order.column ? !order.falls : true };
    fillMembers();
    byId("members").querySelectorAll("th button")[index].focus();
  };
  return make("button", { type: "button", onclick: sort }, cut(name, 30) + mark);
}

// ------------------------------------------------------- parallel coordinates

const MAX_LINES = 150;
const BINS = 8;

/** The objectives, and those coefficients' means that differ between members. */
function dimensions(ids) {
  const rows = rowOf();
  const found = data.objectives.map((objective, m) => ({
    name: objective.name, values: ids.map((id) => data.candidates.objectives[m][rows.get(id)]),
  }));
  const summaries = ids.map((id) => data.recipes.summaries[id]);
  if (summaries.some((summary) => summary === undefined)) return found;
  const labels = summaries[0].rows.map((row) => row[0]);
  for (const [i, label] of labels.entries()) {
    if (!summaries.every((summary) => summary.rows[i] && summary.rows[i][0] === label)) continue;
    const values = summaries.map((summary) => summary.rows[i][1]);
    if (new Set(values).size > 1 && found.length < 10) found.push({ name: `mean ${label}`, values });
  }
  return found;
}

function drawParallel() {
  const all = data.candidates.id.filter((_, row) => data.candidates.role[row] === "front");
  const ids = all.filter((_, i) => i % Math.ceil(all.length / MAX_LINES) === 0);
  const axes = ids.length ? dimensions(ids) : [];
  byId("parallel-plot").hidden = axes.length < 2;
  byId("parallel-note").textContent = axes.length < 2
    ? "Needs two objectives, or coefficients that differ."
    : `One line for each of ${ids.length} members: objectives, then the means of the coefficients ` +
      "over groups. Every axis runs from the lowest to the highest value on the front. " +
      `The lighter the line, the higher ${cut(axes[0].name, 40)}.`;
  if (axes.length < 2) return;
  const unit = axes.map(({ values }) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return values.map((value) => (high > low ? (value - low) / (high - low) : 0.5));
  });
  const bin = (i) => Math.min(BINS - 1, Math.floor(unit[0][i] * BINS));
  const traces = Array.from({ length: BINS }, (_, b) => lineTrace(ids, unit, axes, b, bin));
  const at = ids.indexOf(chosen);
  if (at >= 0) {
    traces.push({ type: "scatter", mode: "lines+markers", x: axes.map((_, k) => k), hoverinfo: "skip",
      y: unit.map((values) => values[at]), line: { color: colour("pick"), width: 4 }, showlegend: false });
  }
  draw("parallel-plot", traces, {
    showlegend: false, margin: { l: 24, r: 24, t: 30, b: 90 },
    xaxis: { tickvals: axes.map((_, k) => k), ticktext: axes.map(({ name }) => twoLines(name, axes.length)),
      gridcolor: colour("line"), zeroline: false, range: [-0.2, axes.length - 0.8], automargin: true },
    yaxis: { visible: false, range: [-0.12, 1.12] },
    annotations: axes.flatMap(({ values }, k) => [
      { x: k, y: 1.02, yanchor: "bottom", showarrow: false, text: show(Math.max(...values), 3) },
      { x: k, y: -0.02, yanchor: "top", showarrow: false, text: show(Math.min(...values), 3) },
    ]),
  });
}

/** Return an axis label as wide as its share of the plot. */
function twoLines(name, n) {
  const most = Math.max(6, Math.floor(byId("parallel-plot").clientWidth / n / 8));
  return name.split(": ").map((part) => plain(cut(part, most))).join(":<br>");
}

function lineTrace(ids, unit, axes, b, bin) {
  const rows = rowOf();
  const trace = { type: "scatter", mode: "lines+markers", x: [], y: [], customdata: [], text: [],
    hoverinfo: "text", marker: { size: 4 }, line: { color: shade(b / (BINS - 1)), width: 1.2 } };
  ids.forEach((id, i) => {
    if (bin(i) !== b) return;
    axes.forEach(({ name, values }, k) => {
      trace.x.push(k);
      trace.y.push(unit[k][i]);
      trace.customdata.push(id);
      trace.text.push(`${hoverText(rows.get(id))}<br>${plain(cut(name, 40))}: ${show(values[i])}`);
    });
    trace.x.push(null); trace.y.push(null); trace.customdata.push(null); trace.text.push("");
  });
  return trace;
}

/** Return a colour from dark violet to yellow-green, readable on both pages. */
function shade(share) {
  const stops = theme() === "dark"
    ? [[122, 104, 214], [33, 170, 160], [240, 228, 66]]
    : [[68, 1, 84], [33, 130, 140], [150, 170, 20]];
  const at = Math.min(share * 2, 1.999);
  const [from, to] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  const mix = from.map((value, i) => Math.round(value + (to[i] - value) * (at % 1)));
  return `rgb(${mix.join(",")})`;
}
