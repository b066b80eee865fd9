// The front: scatter plot and table of members; both show what the parallel coordinates keep.

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
  if (brushes.size) front.marker.opacity = front.customdata.map((id) => (isKept(id) ? 1 : 0.2));
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
  const rows = shown.role.flatMap((role, row) => (role === "front" && isKept(shown.id[row]) ? [row] : []));
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
