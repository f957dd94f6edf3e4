"use strict";
// Draws the charts of the page out of its data, each into its place, again when the place changes its width. Text from
// the data goes into the page as text only.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 62, RIGHT = 20, TOP = 28, BOTTOM = 40;

  function element(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function html(parent, name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  // -- amounts ------------------------------------------------------------------------------

  const digits = (value) =>
    value === 0 ? "0" : value < 9.995 ? String(Number(value.toFixed(2))) : value < 99.95 ? String(Number(value.toFixed(1))) : value.toFixed(0);

  function scaled(value, step, units) {
    let place = 0;
    while (value >= step * 0.9995 && place + 1 < units.length) {
      value /= step;
      place += 1;
    }
    return (digits(value) + " " + units[place]).trim();
  }

  const amounts = {
    duration: (ns) => scaled(ns, 1000, ["ns", "µs", "ms"].concat(ns >= 999.5e6 ? ["s"] : [])),
    records: (value) => scaled(value, 1000, ["", "k", "M", "G"]),
    bytes: (value) => scaled(value, 1000, ["B", "kB", "MB", "GB"]),
    cores: (value) => digits(value),
  };

  // 0, 50, 90, 99, 99.9, ...: as many nines as x counts.
  function percent(x) {
    const part = 100 * Math.pow(10, -x);
    return Number((100 - part).toFixed(Math.max(0, Math.ceil(x) - 1 + (x % 1 ? 1 : 0)))) + " %";
  }

  // -- scales -------------------------------------------------------------------------------

  function linearTicks(low, high, wanted) {
    const rough = (high - low) / Math.max(1, wanted);
    if (!(rough > 0)) return [low];
    const power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const ticks = [];
    for (let place = Math.ceil(low / step); place * step <= high; place += 1) ticks.push(place * step);
    return ticks;
  }

  function logTicks(low, high) {
    const decades = Math.log10(high / low);
    const factors = decades < 1.6 ? [1, 2, 5] : decades < 3.2 ? [1, 3] : [1];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      for (const factor of factors) {
        const value = factor * Math.pow(10, power);
        if (value >= low && value <= high) ticks.push(value);
      }
    return ticks;
  }

  function percentileTicks(most, pixels) {
    const ticks = [{ x: 0, text: "0 %" }];
    if (pixels(Math.log10(2)) - pixels(0) > 34) ticks.push({ x: Math.log10(2), text: "50 %" });
    for (let nines = 1; nines <= most + 1e-9; nines += 1) ticks.push({ x: nines, text: percent(nines) });
    return ticks;
  }

  // -- one chart ----------------------------------------------------------------------------

  function draw(figure, chart) {
    const plot = figure.querySelector(".plot");
    const width = Math.max(260, Math.floor(plot.clientWidth));
    const isPercentile = chart.x === "percentile";
    const height = isPercentile ? Math.min(420, Math.max(250, width * 0.42)) : Math.min(260, Math.max(190, width * 0.5));
    const isLog = chart.y === "duration";
    const [low, high] = chart.y_range;
    const right = width - RIGHT, floor = height - BOTTOM;
    const xOf = (x) => LEFT + ((right - LEFT) * x) / (chart.x_max || 1);
    const share = isLog ? (y) => Math.log(y / low) / Math.log(high / low) : (y) => (y - low) / (high - low || 1);
    const yOf = (y) => floor - (floor - TOP) * Math.min(1, Math.max(0, share(y)));

    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    const names = chart.series.filter((one) => one.style !== "faint").map((one) => one.name);
    svg.setAttribute("aria-label", `${chart.y_label} by ${isPercentile ? "percentile" : "time"}: ${names.join(", ")}`);

    axes(svg, chart, { xOf, yOf, low, high, right, floor, isLog, isPercentile });
    for (const series of chart.series) curve(svg, chart, series, { xOf, yOf, floor });
    marks(svg, chart, { xOf, yOf, right });
    plot.replaceChildren(svg);
    reader(figure, svg, chart, { xOf, right, floor, width, isPercentile });
  }

  function axes(svg, chart, at) {
    const ticks = at.isLog ? logTicks(at.low, at.high) : linearTicks(at.low, at.high, (at.floor - TOP) / 42);
    for (const tick of ticks) {
      const y = at.yOf(tick);
      element(svg, "line", { class: "grid", x1: LEFT, x2: at.right, y1: y, y2: y });
      element(svg, "text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, amounts[chart.y](tick));
    }
    const across = at.isPercentile
      ? percentileTicks(chart.x_max, at.xOf)
      : linearTicks(0, chart.x_max, (at.right - LEFT) / 70).map((x) => ({ x, text: digits(x) }));
    let free = 0;
    for (const tick of across) {
      const x = at.xOf(tick.x);
      if (at.isPercentile) element(svg, "line", { class: "grid", x1: x, x2: x, y1: TOP, y2: at.floor });
      else element(svg, "line", { class: "axis", x1: x, x2: x, y1: at.floor, y2: at.floor + 4 });
      // A label that would run into the one before it is left out; its line stays.
      const half = tick.text.length * 3.3 + 3;
      if (x - half < free) continue;
      free = x + half;
      element(svg, "text", { x, y: at.floor + 17, "text-anchor": "middle" }, tick.text);
    }
    element(svg, "line", { class: "axis", x1: LEFT, x2: at.right, y1: at.floor, y2: at.floor });
    element(svg, "text", { x: 4, y: 12 }, chart.y_label);
    const below = at.isPercentile ? "percentile, each step a tenth of what is left" : "seconds measured";
    element(svg, "text", { x: at.right, y: at.floor + 34, "text-anchor": "end" }, below);
    chart.breaks.forEach((x, place) => {
      element(svg, "line", { class: "break", x1: at.xOf(x), x2: at.xOf(x), y1: 2, y2: at.floor });
      element(svg, "text", { x: at.xOf(x) + 4, y: 12 }, `turn ${place + 2}`);
    });
  }

  const tone = (series) => (series.tone === null ? "tone-none" : `tone-${series.tone}`);

  function curve(svg, chart, series, at) {
    const isTime = chart.x === "time";
    const points = series.points;
    // A second's value stands for all of it.
    const step = isTime && points.length > 1 ? points[1][0] - points[0][0] : 0;
    const path = [];
    let isOpen = false;
    for (const [x, y] of points) {
      if (y === null) {
        isOpen = false;
      } else if (series.style === "area") {
        const from = at.xOf(x).toFixed(1), to = at.xOf(x + step).toFixed(1), top = at.yOf(y).toFixed(1);
        path.push(`M${from} ${at.floor}V${top}H${to}V${at.floor}`);
      } else {
        path.push(`${isOpen ? "L" : "M"}${at.xOf(x).toFixed(1)} ${at.yOf(y).toFixed(1)}`);
        if (step) path.push(`H${at.xOf(x + step).toFixed(1)}`);
        isOpen = true;
      }
    }
    const d = path.join("");
    element(svg, "path", { class: `curve ${series.style} ${tone(series)}`, d, "data-name": series.name });
  }

  // What the worst seconds were, as many as have room, the worst ones first.
  function marks(svg, chart, at) {
    const taken = [];
    for (const mark of chart.marks) {
      const x = Math.min(at.right - 24, Math.max(LEFT + 24, at.xOf(mark.x + 0.5)));
      if (taken.some((other) => Math.abs(other - x) < 58)) continue;
      taken.push(x);
      const y = Math.max(TOP + 2, at.yOf(mark.y) - 5);
      element(svg, "text", { class: "mark", x, y, "text-anchor": "middle" }, amounts[chart.y](mark.y));
    }
  }

  // The values under the pointer.
  function reader(figure, svg, chart, at) {
    const line = element(svg, "line", { class: "at", y1: TOP, y2: at.floor, visibility: "hidden" });
    const box = figure.querySelector(".reading") || html(figure, "div", "reading");
    box.hidden = true;
    svg.addEventListener("pointerleave", () => {
      box.hidden = true;
      line.setAttribute("visibility", "hidden");
    });
    svg.addEventListener("pointermove", (event) => {
      const place = svg.getBoundingClientRect();
      const inside = ((event.clientX - place.left) / place.width) * at.width;
      const x = ((inside - LEFT) / (at.right - LEFT)) * chart.x_max;
      if (x < 0 || x > chart.x_max) return;
      line.setAttribute("visibility", "visible");
      line.setAttribute("x1", inside);
      line.setAttribute("x2", inside);
      box.replaceChildren();
      html(box, "p", "", at.isPercentile ? percent(Math.round(x * 20) / 20) : `${digits(Math.floor(x))} s`);
      for (const series of chart.series) {
        if (series.style === "faint") continue;
        const found = nearest(series.points, x, !at.isPercentile);
        if (!found || found[1] === null) continue;
        const row = html(box, "p", "");
        html(row, "span", `side ${tone(series)}`, series.name);
        html(row, "span", "", amounts[chart.y](found[1]) + (chart.y === "records" || chart.y === "bytes" ? "/s" : ""));
      }
      box.hidden = false;
      const bounds = figure.getBoundingClientRect();
      const from = event.clientX - bounds.left + 14;
      box.style.left = `${from + box.offsetWidth > bounds.width ? from - box.offsetWidth - 28 : from}px`;
      box.style.top = `${place.top - bounds.top + TOP}px`;
    });
  }

  function nearest(points, x, isTime) {
    let found = null;
    for (const point of points) {
      if (isTime ? point[0] <= x : !found || Math.abs(point[0] - x) < Math.abs(found[0] - x)) found = point;
    }
    // Past its end a percentile curve has no value.
    return !isTime && found && x > points[points.length - 1][0] + 0.05 ? null : found;
  }

  function legend(figure, chart) {
    const caption = figure.querySelector("figcaption");
    const shown = chart.series.filter((one) => one.style !== "faint");
    const faint = chart.series.find((one) => one.style === "faint");
    for (const series of faint ? shown.concat([faint]) : shown) {
      const entry = html(caption, "span", "legend");
      const swatch = element(entry, "svg", { width: 24, height: 10, "aria-hidden": "true" });
      const d = series.style === "area" ? "M1 10V2H23V10" : "M1 5H23";
      element(swatch, "path", { class: `curve ${series.style} ${series === faint ? "tone-none" : tone(series)}`, d });
      html(entry, "span", "", series === faint ? "single turns" : series.name);
    }
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = charts[Number(figure.dataset.chart)];
    legend(figure, chart);
    let drawn = 0;
    const fit = () => {
      const width = figure.querySelector(".plot").clientWidth;
      if (width !== drawn) draw(figure, chart);
      drawn = width;
    };
    fit();
    new ResizeObserver(fit).observe(figure);
  }
})();
