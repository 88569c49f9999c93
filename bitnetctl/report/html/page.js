"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const chart = byId("chart"), svg = chart.querySelector("svg"), tip = byId("tip");
  const metric = byId("metric"), show = byId("show"), logX = byId("log-x"), logY = byId("log-y");
  const rows = [...document.querySelectorAll("#runs tbody tr")];
  const hiddenArms = new Set();
  let filtered = null; // indices of the runs that match the filter; null: no filter
  let drawn = [];

  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  // classes of an arm: colour k0 to k7, dashes d0 to d3
  const styleOf = (arm) => `k${arm % 8} d${Math.floor(arm / 8) % 4}`;
  const format = (value) => {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  function series() {
    const name = metric.value;
    const runs = data.runs.filter((run, index) =>
      run.values[name] && !hiddenArms.has(run.arm) && (!filtered || filtered.has(index)));
    const single = runs.map((run) => ({
      arm: run.arm, title: run.name, detail: run.detail, steps: data.grids[run.grid], values: run.values[name],
    }));
    if (show.value === "runs") return single;
    const groups = new Map();
    runs.forEach((run, index) => {
      const key = `${run.arm}/${run.size}`;
      if (!groups.has(key)) groups.set(key, { arm: run.arm, size: run.size, sums: new Map(), count: 0 });
      const group = groups.get(key);
      group.count += 1;
      single[index].steps.forEach((step, point) => {
        const value = single[index].values[point];
        if (value === null) return;
        const sum = group.sums.get(step) || [0, 0];
        group.sums.set(step, [sum[0] + value, sum[1] + 1]);
      });
    });
    return [...groups.values()].map((group) => {
      const points = [...group.sums].sort((one, other) => one[0] - other[0]);
      return {
        arm: group.arm, title: data.arms[group.arm],
        detail: `mean of ${group.count} run${group.count === 1 ? "" : "s"}${group.size === null ? "" : `, size ${group.size}`}`,
        steps: points.map(([step]) => step), values: points.map(([, sum]) => sum[0] / sum[1]),
      };
    });
  }

  function ticks(low, high, log, most) {
    if (log) {
      const candidates = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const factor of [1, 2, 5]) candidates.push(factor * 10 ** power);
      let inside = candidates.filter((value) => value >= low * 0.999 && value <= high * 1.001);
      if (inside.length > most) inside = inside.filter((value) => Number.isInteger(Number(Math.log10(value).toFixed(9))));
      if (inside.length > 1) return inside;
    }
    const unit = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => (high - low) / size <= most);
    const round = [];
    for (let multiple = Math.ceil(low / step - 1e-9); multiple * step <= high + step * 1e-9; multiple++) round.push(multiple * step);
    return round;
  }

  function draw() {
    const width = chart.clientWidth, height = chart.clientHeight;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    clearHighlight();
    const chosen = data.metrics.find((one) => one.id === metric.value);
    const asLogX = logX.checked, asLogY = logY.checked;
    const all = chosen ? series() : [];
    let firstX = Infinity, lastX = -Infinity, low = Infinity, high = -Infinity;
    for (const one of all)
      one.values.forEach((value, index) => {
        if (value === null || (asLogY && value <= 0)) return;
        firstX = Math.min(firstX, one.steps[index]); lastX = Math.max(lastX, one.steps[index]);
        low = Math.min(low, value); high = Math.max(high, value);
      });
    byId("caption").textContent = chosen ? `${chosen.label}; ${all.length} curve${all.length === 1 ? "" : "s"}. ${data.hint}` : "No values to draw.";
    drawn = [];
    if (low > high) {
      make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "nothing to draw: all arms are off or the filter leaves none");
      return;
    }
    const references = (data.references[metric.value] || []).filter((one) => !asLogY || one.value > 0);
    for (const one of references) { low = Math.min(low, one.value); high = Math.max(high, one.value); }
    if (low === high) { const room = Math.abs(low) / 10 || 1; low -= asLogY ? low / 2 : room; high += room; }
    const scaleY = asLogY ? Math.log : (value) => value;
    const margin = (scaleY(high) - scaleY(low)) * 0.04;
    const bottom = scaleY(low) - margin, top = scaleY(high) + margin;
    const unscaleY = asLogY ? Math.exp : (value) => value;
    if (!asLogX) firstX = Math.min(firstX, lastX > 20 * firstX ? 0 : firstX);
    if (firstX === lastX) { firstX = firstX / 2; lastX += 1; }
    const scaleX = asLogX ? (step) => Math.log(Math.max(step, 1)) : (step) => step;
    const left = 52, right = width - 22, plotTop = 18, plotBottom = height - 38;
    const atX = (step) => left + ((scaleX(step) - scaleX(firstX)) / (scaleX(lastX) - scaleX(firstX))) * (right - left);
    const atY = (value) => plotBottom - ((scaleY(value) - bottom) / (top - bottom)) * (plotBottom - plotTop);

    for (const value of ticks(unscaleY(bottom), unscaleY(top), asLogY, height / 50)) {
      make("line", { class: "grid", x1: left, x2: right, y1: atY(value), y2: atY(value) }, svg);
      make("text", { x: left - 6, y: atY(value) + 4, "text-anchor": "end" }, svg, format(value));
    }
    for (const step of ticks(Math.max(firstX, asLogX ? 1 : 0), lastX, asLogX, width / 90))
      make("text", { x: atX(step), y: plotBottom + 18, "text-anchor": "middle" }, svg, format(step));
    make("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, svg, "step");
    for (const one of references) {
      make("line", { class: "reference", x1: left, x2: right, y1: atY(one.value), y2: atY(one.value) }, svg);
      make("text", { x: right, y: atY(one.value) - 5, "text-anchor": "end" }, svg, one.label);
    }
    for (const step of data.boundaries.filter((one) => one >= firstX && one <= lastX)) {
      make("line", { class: "boundary", x1: atX(step), x2: atX(step), y1: plotTop, y2: plotBottom }, svg);
      make("text", { x: atX(step), y: plotTop - 6, "text-anchor": "middle" }, svg, `boundary ${format(step)}`);
    }
    const layer = make("g", { class: all.length > 40 ? "many" : "" }, svg);
    for (const one of all) {
      const points = [];
      let path = "", pen = "M";
      one.values.forEach((value, index) => {
        if (value === null || (asLogY && value <= 0)) { pen = "M"; return; }
        const x = atX(one.steps[index]), y = atY(value);
        path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
        pen = "L";
        points.push([x, y, one.steps[index], value]);
      });
      const element = make("path", { class: `curve ${styleOf(one.arm)}`, d: path }, layer);
      if (points.length === 1) make("circle", { class: styleOf(one.arm), cx: points[0][0], cy: points[0][1], r: 3 }, layer);
      drawn.push({ ...one, points, element });
    }
    drawn.layer = layer;
  }

  function clearHighlight() {
    tip.hidden = true;
    if (!drawn.layer) return;
    drawn.layer.classList.remove("has-highlight");
    svg.querySelectorAll(".highlighted").forEach((element) => element.classList.remove("highlighted"));
    svg.querySelectorAll(".dot").forEach((element) => element.remove());
  }

  function highlight(event) {
    const box = svg.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, nearest = Infinity;
    for (const one of drawn)
      for (const point of one.points) {
        const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2;
        if (distance < nearest) { nearest = distance; best = [one, point]; }
      }
    clearHighlight();
    if (!best) return;
    const [one, point] = best;
    drawn.layer.classList.add("has-highlight");
    one.element.classList.add("highlighted");
    one.element.parentNode.append(one.element);
    make("circle", { class: `dot ${styleOf(one.arm)}`, cx: point[0], cy: point[1], r: 4.5 }, svg);
    const title = document.createElement("strong");
    title.textContent = one.title;
    tip.replaceChildren(title, `${one.detail}`, document.createElement("br"), `step ${point[2].toLocaleString("en")}: ${format(point[3])}`);
    tip.hidden = false;
    const beside = point[0] + 14 + tip.offsetWidth > box.width ? point[0] - 14 - tip.offsetWidth : point[0] + 14;
    tip.style.transform = `translate(${Math.max(0, beside)}px, ${Math.max(0, Math.min(point[1] - 20, box.height - tip.offsetHeight))}px)`;
  }

  function chip(text, pressed, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    if (pressed !== null) button.setAttribute("aria-pressed", pressed);
    button.append(text);
    button.addEventListener("click", () => { action(button); draw(); });
    byId("arms").append(button);
    return button;
  }

  function buildChips() {
    const buttons = data.arms.map((label, arm) => {
      const button = chip(label, true, (self) => {
        if (hiddenArms.delete(arm)) self.setAttribute("aria-pressed", true);
        else { hiddenArms.add(arm); self.setAttribute("aria-pressed", false); }
      });
      const swatch = make("svg", { class: `k${arm % 8}`, "aria-hidden": true });
      make("line", { class: `d${Math.floor(arm / 8) % 4}`, x1: 0, x2: 20, y1: 4, y2: 4 }, swatch);
      button.prepend(swatch);
      return button;
    });
    if (buttons.length < 3) return;
    const set = (on) => () => buttons.forEach((button, arm) => {
      button.setAttribute("aria-pressed", on);
      if (on) hiddenArms.delete(arm); else hiddenArms.add(arm);
    });
    chip("all", null, set(true));
    chip("none", null, set(false));
  }

  function filter() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    filtered = words.length ? new Set() : null;
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const keep = words.every((word) => text.includes(word));
      row.hidden = !keep;
      if (keep) { count += 1; if (filtered) filtered.add(Number(row.dataset.run)); }
    }
    byId("shown").textContent = words.length ? `${count} of ${rows.length}; the curves follow` : "";
    draw();
  }

  function sortBy(header, column) {
    const upwards = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.v;
    const numeric = header.dataset.kind === "number";
    const sorted = rows.map((row) => [key(row), row]).sort(([one], [other]) => {
      // unknown values come last in both directions
      if (one === "" || other === "") return (one === "") - (other === "");
      const order = numeric ? one - other : one.localeCompare(other, "en", { numeric: true });
      return upwards ? order : -order;
    });
    rows[0].parentNode.append(...sorted.map(([, row]) => row));
  }

  document.querySelectorAll("#runs thead th").forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(header, column));
  });
  for (const one of data.metrics) metric.append(new Option(one.label, one.id));
  if (data.runs.length > 60) show.value = "means";
  const applyDefaultScale = () => { const chosen = data.metrics.find((one) => one.id === metric.value); logY.checked = Boolean(chosen && chosen.log); };
  metric.addEventListener("change", () => { applyDefaultScale(); draw(); });
  for (const control of [show, logX, logY]) control.addEventListener("change", draw);
  byId("filter").addEventListener("input", filter);
  chart.addEventListener("pointermove", highlight);
  chart.addEventListener("pointerdown", highlight);
  chart.addEventListener("pointerleave", clearHighlight);
  buildChips();
  applyDefaultScale();
  let frame = 0;
  new ResizeObserver(() => { cancelAnimationFrame(frame); frame = requestAnimationFrame(draw); }).observe(chart);
  draw();
})();
