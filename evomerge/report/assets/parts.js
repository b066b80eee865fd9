// The other parts: overview, history, niches, lineage, coefficients, validation, failures.

function fillOverview() {
  fillList(byId("facts"), data.summary.facts);
  const warnings = data.summary.feasible ? [] : ["No candidate keeps all constraints; the front holds those that come nearest."];
  const lines = [...warnings, ...data.summary.constraints.map((line) => `Constraint: ${line}`)];
  byId("warnings").replaceChildren(...lines.map((line) => make("p", { className: "note" }, line)));
  const hasParents = data.summary.picks.some((pick) => pick.objectives.some((cell) => "parent" in cell));
  byId("picks-note").textContent = !data.summary.picks.length
    ? "Nothing was scored yet."
    : "Search scores with 95 % bootstrap intervals over the examples" +
      (hasParents ? "; below, the paired difference to the best unmerged model of that column. " : ". ") +
      `Each was chosen out of ${count(data.candidates.total)} candidates on these very examples, so ` +
      "its score is too high on average, which the intervals do not show. Score an export on " +
      "examples that the search never saw.";
  const heads = data.summary.columns.map((name, m) =>
    m < data.objectives.length ? `${name} (n = ${count(data.objectives[m].n)})` : name);
  fillTable(
    byId("picks"), ["pick", "candidate", ...heads],
    data.summary.picks.map((pick) => [
      pick.label, candidateButton(pick.candidate), ...pick.objectives.map(pickCell),
    ]),
  );
}

function pickCell(cell) {
  const lines = [`${show(cell.value)} ${range(cell.interval, show)}`];
  if ("parent" in cell) {
    const gain = `${signed(cell.gain)} ${range(cell.gain_interval, signed)} to ${cell.parent}`;
    lines.push(make("span", { className: "soft" }, gain));
  }
  return make("div", {}, ...lines);
}

// ------------------------------------------------------------------ history

function costOptions() {
  const options = [["told", "candidates"]];
  if (data.history.seconds.some((value) => value !== null)) options.push(["seconds", "time of all workers"]);
  fillSelect(byId("cost"), options, "told");
}

/** Return the values of the cost axis and its title with the unit. */
function cost() {
  if (byId("cost").value !== "seconds") return [data.history.told, "candidates told"];
  const last = Math.max(...data.history.seconds);
  const [size, unit] = last < 120 ? [1, "s"] : last < 7200 ? [60, "min"] : [3600, "h"];
  return [data.history.seconds.map((value) => value === null ? null : value / size), `worker time (${unit})`];
}

function drawHistory() {
  const [x, title] = cost();
  const lines = data.history.best.map((values, m) => ({
    type: "scatter", mode: "lines", name: plain(cut(data.objectives[m].name, 40)), x, y: values,
    line: { color: colour(LINES[m % 5]), dash: DASHES[Math.floor(m / 5) % 5], shape: "hv", width: 2 },
  }));
  draw("best-plot", lines, { xaxis: axis(title), yaxis: axis("best score so far"), hovermode: "x unified" });
  const volumes = data.history.hypervolume;
  byId("volume-note").textContent = data.history.reference
    ? `Above the reference point ${data.history.reference.map((value) => show(value)).join(", ")}, ` +
      "fixed when the founders were scored; in the product of the objectives' units."
    : "Begins when all founders are scored.";
  const line = { color: colour("front"), shape: "hv", width: 2 };
  draw("volume-plot", [{ type: "scatter", mode: "lines", x, y: volumes, line }],
    { xaxis: axis(title), yaxis: axis("hypervolume"), hovermode: "x unified" });
  draw("size-plot", [{ type: "scatter", mode: "lines", x, y: data.history.front, line }],
    { xaxis: axis(title), yaxis: axis("members", { rangemode: "tozero" }), hovermode: "x unified" });
}

// ------------------------------------------------------------------- niches

function drawNiches() {
  const niches = data.niches;
  byId("niches-plot").hidden = !niches;
  if (!niches) { byId("niches-note").textContent = "Nothing was scored yet."; return; }
  fillSelect(byId("niches-task"), niches.tasks.map((task, i) => [String(i), task.task]), "0");
  const task = niches.tasks[Number(byId("niches-task").value)];
  const width = task.examples.length;
  const cells = Uint8Array.from(atob(task.cells), (letter) => letter.charCodeAt(0));
  const value = (byte) => task.low + (byte / 255) * (task.high - task.low);
  const z = niches.members.map((_, i) => Array.from(cells.subarray(i * width, (i + 1) * width), value));
  byId("niches-note").textContent =
    `${count(width)} of ${count(task.n)} examples, in the order of who solves them; ` +
    `on ${count(task.alike)} all members score alike` +
    (task.left_out ? `, and ${count(task.left_out)} less telling ones are not shown. ` : ". ") +
    (niches.left_out ? `${count(niches.left_out)} members are not shown. ` : "") +
    "Members are sorted by the first objective, best on top.";
  byId("niches-plot").hidden = width === 0;
  if (!width) return;
  const trace = {
    type: "heatmap", z, x: task.examples.map((_, i) => i), y: niches.members.map((_, i) => i),
    zmin: task.low, zmax: task.high, colorscale: rising(), customdata: niches.members.map((id) => Array(width).fill(id)),
    text: niches.members.map((id) => task.examples.map((example) => `candidate ${id}, example ${example}`)),
    hovertemplate: "%{text}<br>score %{z:.3g}<extra></extra>",
    colorbar: { title: { text: "score" }, thickness: 12 },
  };
  const every = Math.ceil(niches.members.length / 20);
  const ticks = niches.members.map((_, i) => i).filter((i) => i % every === 0);
  draw("niches-plot", [trace], {
    xaxis: axis("examples, sorted", { showticklabels: false, showgrid: false }),
    yaxis: axis("candidate", { autorange: "reversed", tickvals: ticks, showgrid: false,
      ticktext: ticks.map((i) => String(niches.members[i])) }),
  }, task.task);
}

// ------------------------------------------------------------------ lineage

function drawLineage() {
  const tree = data.lineage;
  byId("lineage-plot").hidden = !tree.bred;
  byId("lineage-note").textContent = tree.bred
    ? `${count(tree.nodes.length)} candidates: the front and its ancestors, oldest left.` +
      (tree.left_out ? ` ${count(tree.left_out)} more ancestors are not shown.` : "")
    : "No member of the front has parents: it was found by an algorithm that proposes recipes " +
      "without breeding two, or holds founders only.";
  if (!tree.bred) return;
  const places = new Map(tree.nodes.map((node) => [node.id, node]));
  const edges = { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", showlegend: false,
    line: { color: colour("line"), width: 1 } };
  for (const [parent, child] of tree.edges) {
    edges.x.push(places.get(parent).depth, places.get(child).depth, null);
    edges.y.push(places.get(parent).lane, places.get(child).lane, null);
  }
  const rows = rowOf();
  const nodes = (keep, name, marker) => {
    const kept = tree.nodes.filter(keep);
    return { type: "scatter", mode: kept.length > 25 ? "markers" : "markers+text", name, marker,
      x: kept.map((node) => node.depth), y: kept.map((node) => node.lane),
      customdata: kept.map((node) => node.id), textposition: "top center",
      text: kept.map((node) => String(node.id)), hoverinfo: "text",
      hovertext: kept.map((node) => rows.has(node.id) ? hoverText(rows.get(node.id)) : `candidate ${node.id}`) };
  };
  draw("lineage-plot", [
    edges,
    nodes((node) => !node.front, "ancestors", { color: colour("other"), size: 8 }),
    nodes((node) => node.front, "front", { color: colour("front"), size: 11, symbol: "star" }),
  ], {
    xaxis: axis("generation", { dtick: Math.ceil(Math.max(...tree.nodes.map((n) => n.depth)) / 12) }),
    yaxis: { visible: false, range: [-0.05, 1.1] },
  });
}

// ------------------------------------------------------------- coefficients

const family = (label) => label.split(": ")[0];

function drawMap() {
  const ids = Object.keys(data.recipes.maps).map(Number);
  const names = new Map(data.summary.picks.map((pick) => [pick.candidate, ` (${cut(pick.label, 30)})`]));
  fillSelect(byId("map-candidate"), ids.map((id) => [String(id), `${id}${names.get(id) || ""}`]),
    ids.includes(chosen) ? chosen : ids[0]);
  byId("map-plot").hidden = !ids.length;
  if (!ids.length) { byId("map-note").textContent = "No member of the front has coefficients."; return; }
  const id = Number(byId("map-candidate").value);
  const map = data.recipes.maps[id];
  const families = [...new Set(map.columns.map(family))];
  const size = (name) => map.columns.filter((label) => family(label) === name).length;
  const widest = families.reduce((best, name) => (size(name) > size(best) ? name : best));
  fillSelect(byId("map-parameter"), families.map((name) => [name, name]), widest);
  const wanted = byId("map-parameter").value;
  const kept = map.columns.flatMap((label, i) => (family(label) === wanted ? [i] : []));
  const labels = data.recipes.labels[map.labels];
  const heads = kept.map((i) => map.columns[i].slice(wanted.length).replace(/^: /, "") || wanted);
  const z = map.values.map((row) => kept.map((i) => row[i]));
  byId("map-note").textContent = `${cut(wanted, 40)} of candidate ${id}, ` +
    (labels.length < map.groups ? `${labels.length} of ${map.groups} groups, evenly chosen` : `${map.groups} group${map.groups > 1 ? "s" : ""}`) +
    ` of tensors (grouping ${cut(data.recipes.summaries[id].grouping, 40)}); a factor without unit.`;
  const most = Math.max(1e-12, ...z.flat().map((value) => Math.abs(value ?? 0)));
  const isSmall = labels.length <= 36 && kept.length <= 8;
  const place = byId("map-plot");
  place.style.height = `${Math.min(900, Math.max(240, 120 + labels.length * 22))}px`;
  draw("map-plot", [{
    type: "heatmap", z, x: heads.map((_, i) => i), y: labels.map((_, i) => i),
    zmin: -most, zmax: most, colorscale: diverging(), xgap: 1, ygap: 1,
    text: labels.map((label, i) => heads.map((head, j) => isSmall ? show(z[i][j]) : "")),
    texttemplate: isSmall ? "%{text}" : "", textfont: { color: colour("text") },
    hovertext: labels.map((label, i) => heads.map((head, j) => `${plain(label)}, ${plain(cut(head, 40))}: ${show(z[i][j])}`)),
    hoverinfo: "text", colorbar: { title: { text: plain(cut(wanted, 16)) }, thickness: 12 },
  }], {
    xaxis: axis("source", { tickvals: heads.map((_, i) => i), ticktext: heads.map((head) => plain(cut(head, 20))), showgrid: false }),
    yaxis: axis("group of tensors", { autorange: "reversed", showgrid: false, ...thinned(labels) }),
  }, wanted);
  fillTable(byId("map-table"), ["group", ...heads.map((text) => ({ text, number: true }))],
    labels.map((label, i) => [label, ...z[i].map((value) => show(value))]));
}

function thinned(labels) {
  const every = Math.ceil(labels.length / 40);
  const shown = labels.map((_, i) => i).filter((i) => i % every === 0);
  return { tickvals: shown, ticktext: shown.map((i) => plain(cut(labels[i], 24))) };
}

// --------------------------------------------------------------- validation

function drawValidation() {
  const found = data.validation;
  fillSelect(byId("validation-objective"), data.objectives.map((o, m) => [String(m), o.name]), "0");
  const m = Number(byId("validation-objective").value);
  const [search, later] = [found.search[m], found.validation[m]];
  const rows = found.id.map((_, i) => i).filter((i) => later[i] !== null && search[i] !== null);
  const gap = rows.reduce((sum, i) => sum + search[i] - later[i], 0) / (rows.length || 1);
  byId("validation-note").textContent = rows.length
    ? `On ${rows.length} candidates the search score is ${show(Math.abs(gap))} ${gap < 0 ? "lower" : "higher"} than the ` +
      `validation score on average (n = ${count(data.objectives[m].n)} search, ${count(found.n[m])} validation examples).` +
      (found.shrunken[m].some((value) => value !== null)
        ? " Shrunken: the validation score less the luck of being chosen, drawn towards the mean of all." : "") +
      (found.gains[m].some((gain) => gain !== null)
        ? " Over best parent: the paired difference to the unmerged model that the search scored best; p is the chance of" +
          " such a gain if there were none, adjusted for the number of candidates (Holm)." : "") +
      " In brackets: 95 % bootstrap intervals over the examples."
    : "No candidate has a validation score of this objective.";
  const ends = rows.flatMap((i) => [search[i], later[i]]);
  const line = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
  const name = data.objectives[m].name;
  draw("validation-plot", [
    { type: "scatter", mode: "lines", x: line, y: line, name: "no gap", hoverinfo: "skip",
      line: { color: colour("other"), dash: "dash", width: 1 } },
    { type: "scatter", mode: "markers", name: "candidates", x: rows.map((i) => search[i]), y: rows.map((i) => later[i]),
      customdata: rows.map((i) => found.id[i]), text: rows.map((i) => `candidate ${found.id[i]}`),
      marker: { color: colour("front"), size: 9 } },
  ], { xaxis: axis(`${name}, search`), yaxis: axis(`${name}, validation`) }, String(m));
  const heads = ["search", "validation", "gap", "shrunken", "over best parent", "p"]
    .map((text) => ({ text, number: true }));
  fillTable(byId("validation-table"), [{ text: "candidate", number: true }, ...heads],
    rows.map((i) => {
      const [around, gain] = [found.intervals[m][i], found.gains[m][i]];
      return [candidateButton(found.id[i]), show(search[i]), show(later[i]) + (around ? ` ${range(around, show)}` : ""),
        signed(search[i] - later[i]), found.shrunken[m][i] === null ? "" : show(found.shrunken[m][i]),
        gain ? `${signed(gain.gain)} ${range(gain.interval, signed)} (candidate ${gain.over})` : "",
        gain ? gain.p.toFixed(3) : ""];
    }));
}

// ------------------------------------------------- failures and environment

function fillFailures() {
  const { total, kinds, kinds_left_out: more, lost } = data.failures;
  byId("failures-note").textContent = total
    ? `${count(total)} candidates could not be scored.` + (more ? ` ${count(more)} more kinds of errors are not shown.` : "") +
      " Tracebacks are in events.log."
    : "Every candidate that was told has scores, or some of them.";
  byId("failures-table").hidden = !total;
  fillTable(byId("failures-table"), ["error", { text: "candidates", number: true }, "which"],
    kinds.map((kind) => [
      make("div", { className: "breaks long" }, kind.error), count(kind.count),
      make("div", { className: "long" }, kind.candidates.join(", ") + (kind.count > kind.candidates.length ? ", …" : "")),
    ]));
  byId("lost").replaceChildren(...(lost.length ? lost : ["none"]).map((line) => make("li", { className: "breaks" }, line)));
}

function fillEnvironment() {
  const found = data.environment;
  const join = (pairs, text) => Object.entries(pairs).map(text).join(", ") || "not recorded";
  fillList(byId("versions"), [
    ["Versions of the search", join(found.versions, ([name, version]) => `${name} ${version}`)],
    ["Report by", `evomerge ${found.report_version}`],
    ["Seed", String(found.seed)],
    ["Machines", found.machines.join("; ") || "not recorded"],
    ["Workers", join(found.workers, ([name, done]) => `${name} (${count(done)} results)`)],
    ["Run folder", data.folder],
  ]);
  fillTable(byId("sources"), ["source", "model", "LoRA", "revision", "digest of the weights"],
    found.sources.map((source) => [source.id, source.model, source.lora || "–", source.revision || "–",
      make("code", {}, source.digest)]));
  fillTable(byId("data-digests"), ["file", "digest"],
    Object.entries(found.data).map(([file, digest]) => [file, make("code", {}, digest)]));
  byId("config").textContent = found.config;
}
