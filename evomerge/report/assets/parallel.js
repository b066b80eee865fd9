// Parallel coordinates of the front, and brushes: ranges of values that members are kept by.

const MAX_LINES = 150;
const BINS = 8;
const MAX_AXES = 10;

const brushes = new Map(); // name of an axis -> [lowest, highest] value that is kept
let axes = []; // {name, values: Map of candidate -> value, low, high}
let strokes = 0; // brushes drawn so far: plotly forgets its own selection when this changes

const frontIds = () => data.candidates.id.filter((_, row) => data.candidates.role[row] === "front");

/** Find the axes: the objectives, and those coefficients' means that differ between members. */
function findAxes() {
  const ids = frontIds();
  const rows = rowOf();
  axes = data.objectives.map((objective, m) =>
    newAxis(objective.name, ids, ids.map((id) => data.candidates.objectives[m][rows.get(id)])));
  const summaries = ids.map((id) => data.recipes.summaries[id]);
  if (ids.length && summaries.every((summary) => summary !== undefined)) {
    summaries[0].rows.forEach(([label], i) => {
      if (!summaries.every((summary) => summary.rows[i] && summary.rows[i][0] === label)) return;
      const values = summaries.map((summary) => summary.rows[i][1]);
      if (new Set(values).size > 1 && axes.length < MAX_AXES) axes.push(newAxis(`mean ${label}`, ids, values));
    });
  }
  for (const name of brushes.keys()) if (!axes.some((axis) => axis.name === name)) brushes.delete(name);
}

function newAxis(name, ids, values) {
  const low = Math.min(...values), high = Math.max(...values);
  return { name, low, high, values: new Map(ids.map((id, i) => [id, values[i]])) };
}

/** Return whether a member lies in every brush. */
function isKept(id) {
  return axes.every(({ name, values }) => {
    const [low, high] = brushes.get(name) || [-Infinity, Infinity];
    return values.get(id) >= low && values.get(id) <= high;
  });
}

const unit = (axis, value) => (axis.high > axis.low ? (value - axis.low) / (axis.high - axis.low) : 0.5);

function drawParallel() {
  const all = frontIds();
  const kept = all.filter(isKept);
  const has = all.length > 0 && axes.length > 1;
  byId("parallel-plot").hidden = byId("brushes").hidden = !has;
  byId("parallel-note").textContent = !has
    ? "Needs two objectives, or coefficients that differ."
    : `One line for each of ${count(Math.min(all.length, MAX_LINES))} members: objectives, then the means of the ` +
      "coefficients over groups. Every axis runs from the lowest to the highest value on the front. " +
      `The lighter the line, the higher ${cut(axes[0].name, 40)}. ` +
      "Drag over an axis, or give a range below, to keep only the members within it.";
  if (!has) return;
  fillBrushes(kept.length, all.length);
  const few = (ids) => ids.filter((_, i) => i % Math.ceil(ids.length / MAX_LINES) === 0);
  const bin = (id) => Math.min(BINS - 1, Math.floor(unit(axes[0], axes[0].values.get(id)) * BINS));
  const traces = [lineTrace(few(all.filter((id) => !isKept(id))), { color: colour("line"), width: 1 }, false)];
  for (let b = 0; b < BINS; b++) {
    traces.push(lineTrace(few(kept).filter((id) => bin(id) === b), { color: shade(b / (BINS - 1)), width: 1.2 }));
  }
  if (all.includes(chosen)) traces.push(lineTrace([chosen], { color: colour("pick"), width: 4 }, false));
  const isNew = draw("parallel-plot", traces, {
    showlegend: false, margin: { l: 24, r: 24, t: 30, b: 90 }, dragmode: isNarrow() ? false : "select",
    newselection: { line: { color: colour("accent") } },
    xaxis: { tickvals: axes.map((_, k) => k), ticktext: axes.map(({ name }) => tickText(name)), fixedrange: true,
      tickangle: isTight() ? 90 : 0,
      gridcolor: colour("line"), zeroline: false, range: [-0.3, axes.length - 0.7], automargin: true },
    yaxis: { visible: false, range: [-0.12, 1.12], fixedrange: true },
    shapes: axes.flatMap(brushShape),
    annotations: axes.flatMap(({ low, high }, k) => [
      { x: k, y: 1.02, yanchor: "bottom", showarrow: false, text: show(high, 3) },
      { x: k, y: -0.02, yanchor: "top", showarrow: false, text: show(low, 3) },
    ]),
  }, `strokes ${strokes}`);
  if (isNew) {
    byId("parallel-plot").on("plotly_selected", brushBox);
    byId("parallel-plot").on("plotly_doubleclick", clearBrushes);
  }
}

function brushShape(axis, k) {
  if (!brushes.has(axis.name)) return [];
  const [low, high] = brushes.get(axis.name).map((value) => Math.max(-0.02, Math.min(1.02, unit(axis, value))));
  return [{ type: "rect", x0: k - 0.08, x1: k + 0.08, y0: low, y1: high, layer: "above",
    fillcolor: colour("accent"), opacity: 0.35, line: { color: colour("accent"), width: 1 } }];
}

/** Whether labels must stand upright to have room beside each other. */
const isTight = () => byId("parallel-plot").clientWidth / axes.length < 90;

/** Return an axis label: as wide as its share of the plot, or upright. */
function tickText(name) {
  if (isTight()) return plain(cut(name.replace(/^mean /, ""), 20));
  const most = Math.max(6, Math.floor(byId("parallel-plot").clientWidth / axes.length / 8));
  return name.split(": ").map((part) => plain(cut(part, most))).join(":<br>");
}

function lineTrace(ids, line, isLive = true) {
  const rows = rowOf();
  const trace = { type: "scatter", mode: "lines+markers", x: [], y: [], customdata: [], text: [],
    hoverinfo: isLive ? "text" : "skip", marker: { size: 4 }, line, unselected: { marker: { opacity: 1 } } };
  for (const id of ids) {
    axes.forEach((axis, k) => {
      const value = axis.values.get(id);
      trace.x.push(k);
      trace.y.push(unit(axis, value));
      trace.customdata.push(id);
      trace.text.push(`${hoverText(rows.get(id))}<br>${plain(cut(axis.name, 40))}: ${show(value)}`);
    });
    trace.x.push(null); trace.y.push(null); trace.customdata.push(null); trace.text.push("");
  }
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

// ------------------------------------------------------------------ brushes

function fillBrushes(n, total) {
  fillSelect(byId("brush-axis"), axes.map(({ name }) => [name, cut(name, 40)]), axes[0].name);
  const axis = axes.find(({ name }) => name === byId("brush-axis").value);
  const range = brushes.get(axis.name) || [-Infinity, Infinity];
  for (const [i, id, edge] of [[0, "brush-low", axis.low], [1, "brush-high", axis.high]]) {
    byId(id).placeholder = show(edge).replace("−", "-");
    byId(id).value = Number.isFinite(range[i]) ? String(Number(range[i].toPrecision(4))) : "";
  }
  byId("brush-clear").disabled = !brushes.size;
  const ranges = [...brushes].map(([name, [low, high]]) => `${cut(name, 40)} ` +
    (!Number.isFinite(high) ? `≥ ${show(low)}` : !Number.isFinite(low) ? `≤ ${show(high)}` : `${show(low)} to ${show(high)}`));
  byId("brush-state").textContent = brushes.size ? `${count(n)} of ${count(total)} members kept: ${ranges.join("; ")}` : "";
}

function brush(name, low, high) {
  if (low === -Infinity && high === Infinity) brushes.delete(name);
  else brushes.set(name, [Math.min(low, high), Math.max(low, high)]);
  afterBrush();
}

function afterBrush() {
  strokes += 1;
  drawFront();
  fillMembers();
  drawParallel();
}

/** Keep what a box dragged over one or more axes spans; without a box, everything. */
function brushBox(event) {
  if (!event || !event.range) return;
  const [left, right] = [...event.range.x].sort((a, b) => a - b);
  const [low, high] = [...event.range.y].sort((a, b) => a - b);
  const at = axes.map((_, k) => k).filter((k) => k >= left && k <= right);
  const nearest = Math.max(0, Math.min(axes.length - 1, Math.round((left + right) / 2)));
  for (const k of at.length ? at : [nearest]) {
    const { name, low: from, high: to } = axes[k];
    // A box over the end of an axis means that end, too.
    brushes.set(name, [low <= 0 ? -Infinity : from + low * (to - from), high >= 1 ? Infinity : from + high * (to - from)]);
    if (low <= 0 && high >= 1) brushes.delete(name);
  }
  afterBrush();
}

function clearBrushes() {
  brushes.clear();
  afterBrush();
}

byId("brush-axis").addEventListener("change", drawParallel);
for (const id of ["brush-low", "brush-high"]) {
  byId(id).addEventListener("change", () => {
    const read = (input, otherwise) => (byId(input).value === "" ? otherwise : Number(byId(input).value));
    brush(byId("brush-axis").value, read("brush-low", -Infinity), read("brush-high", Infinity));
  });
}
byId("brush-clear").addEventListener("click", () => { clearBrushes(); byId("brush-axis").focus(); });
