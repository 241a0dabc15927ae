
// The timeline of a step: a host lane and one lane per stream, drawn on a canvas, with everything reachable by keys.
(() => {
  const holder = document.getElementById("timeline-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const TERMS = ["ft", "ct", "launch", "blocked", "sync"];
  const COLOURS = { ft: "--ft", ct: "--ct", launch: "--kt", blocked: "--blocked", sync: "--sync", device: "--device" };
  const AXIS = 24, LANE = 34, GAP = 8, NAMES = 76, MIN_US = 0.5, DIMMED = 0.15;
  const element = (id) => document.getElementById(`timeline-${id}`);
  const canvas = element("canvas"), chooser = element("variant"), field = element("filter");
  const brush = canvas.getContext("2d");
  let step, view, across = 0, selected = null, wanted = "", colours = {};

  /** Bars of one variant: per lane, in order, {begin, us, term, family, place, launch}; microseconds. */
  function laidOut(variant) {
    const host = [], bars = [];
    let at = 0;
    for (let i = 0; i < variant.host.length; i += 3) {
      const [family, place] = variant.places[variant.host[i]], us = variant.host[i + 2] / data.perUs;
      const term = variant.host[i + 1];
      host.push({ begin: at / data.perUs, us, term: TERMS[term], kind: data.terms[term], family: variant.families[family], place });
      at += variant.host[i + 2];
    }
    const lanes = [{ name: "host", bars: host }];
    for (const [stream, row] of variant.streams) {
      let begin = 0;
      const own = [];
      for (let i = 0; i < row.length; i += 4) {
        begin += row[i];
        const launch = host[row[i + 3]];
        const bar = { begin: begin / data.perUs, us: row[i + 1] / data.perUs, term: "device", kind: `on stream ${stream}`,
          family: variant.families[row[i + 2]], place: launch ? launch.place : "", launch };
        if (launch && !launch.work) launch.work = bar;
        own.push(bar);
      }
      lanes.push({ name: `stream ${stream}`, bars: own });
    }
    lanes.forEach((lane, index) => lane.bars.forEach((bar, i) => Object.assign(bar, { lane: index, index: i })));
    lanes.forEach((lane) => bars.push(...lane.bars));
    return { name: variant.name, wall: variant.wall / data.perUs, lanes, bars };
  }

  const height = () => AXIS + step.lanes.length * (LANE + GAP) + GAP;
  const toX = (us) => NAMES + ((us - view.from) / (view.to - view.from)) * (across - NAMES);
  const toUs = (x) => view.from + ((x - NAMES) / (across - NAMES)) * (view.to - view.from);
  const laneY = (lane) => AXIS + GAP + lane * (LANE + GAP);
  const shown = (us) => us >= 1000 ? `${(us / 1000).toFixed(3)} ms` : `${us.toFixed(2)} µs`;
  const matches = (bar) => !wanted || bar.family.toLowerCase().includes(wanted) || bar.place.toLowerCase().includes(wanted);

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    colours = { ink: style.getPropertyValue("--ink"), soft: style.getPropertyValue("--soft"), rule: style.getPropertyValue("--rule"), ground: style.getPropertyValue("--ground"), focus: style.getPropertyValue("--focus") };
    for (const [term, name] of Object.entries(COLOURS)) colours[term] = style.getPropertyValue(name);
  }

  /** Index of the first bar that ends after ``us``. */
  function firstAfter(bars, us) {
    let low = 0, high = bars.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (bars[middle].begin + bars[middle].us < us) low = middle + 1; else high = middle;
    }
    return low;
  }

  function draw() {
    const scale = devicePixelRatio || 1;
    across = canvas.clientWidth || 800; // asked for once: the browser may have to lay the page out to answer
    canvas.style.height = `${height()}px`;
    canvas.width = Math.round(across * scale);
    canvas.height = Math.round(height() * scale);
    brush.setTransform(scale, 0, 0, scale, 0, 0);
    brush.font = "12px system-ui, sans-serif";
    brush.textBaseline = "middle";
    brush.fillStyle = colours.ground;
    brush.fillRect(0, 0, across, height());
    axis();
    step.lanes.forEach((lane, index) => drawLane(lane, laneY(index)));
    brush.fillStyle = colours.ground;
    brush.fillRect(0, AXIS, NAMES - 2, height());
    brush.fillStyle = colours.ink;
    step.lanes.forEach((lane, index) => brush.fillText(lane.name, 6, laneY(index) + LANE / 2));
    if (selected) arrow(selected);
    element("range").textContent = `${step.name}: ${shown(view.from)} to ${shown(view.to)} of ${shown(step.wall)}`;
    Object.assign(canvas.dataset, { from: view.from.toFixed(3), to: view.to.toFixed(3), bars: step.bars.length });
  }

  function axis() {
    const span = view.to - view.from, rough = span / Math.max(2, (across - NAMES) / 110);
    const power = 10 ** Math.floor(Math.log10(rough)), unit = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    for (let us = Math.ceil(view.from / unit) * unit; us <= view.to; us += unit) {
      brush.fillStyle = colours.rule;
      brush.fillRect(toX(us), AXIS, 1, height());
      brush.fillStyle = colours.soft;
      brush.fillText(shown(us), toX(us) + 3, AXIS / 2);
    }
    brush.fillStyle = colours.focus;
    brush.fillRect(toX(step.wall), AXIS, 2, height());
  }

  /** Bars of a pixel and more one by one; finer ones as the shares of their terms in each pixel, the rest left empty. */
  function drawLane(lane, y) {
    const perPixel = (view.to - view.from) / (across - NAMES);
    let pixel = -1, shares = new Map();
    function flush() {
      let bottom = y + LANE;
      for (const term of [...TERMS, "device"]) {
        for (const alpha of [1, DIMMED]) {
          const part = LANE * Math.min(1, (shares.get(`${term}|${alpha}`) || 0) / perPixel);
          if (!part) continue;
          brush.globalAlpha = alpha;
          brush.fillStyle = colours[term];
          brush.fillRect(pixel, bottom - part, 1, part);
          bottom -= part;
        }
      }
      brush.globalAlpha = 1;
      shares = new Map();
    }
    for (let i = firstAfter(lane.bars, view.from); i < lane.bars.length && lane.bars[i].begin <= view.to; i++) {
      const bar = lane.bars[i], left = Math.max(toX(bar.begin), NAMES), right = Math.min(toX(bar.begin + bar.us), across);
      const alpha = matches(bar) ? 1 : DIMMED;
      if (right - left < 1 && bar !== selected) {
        if (Math.floor(left) !== pixel) {
          flush();
          pixel = Math.floor(left);
        }
        const key = `${bar.term}|${alpha}`;
        shares.set(key, (shares.get(key) || 0) + bar.us);
        continue;
      }
      brush.globalAlpha = alpha;
      brush.fillStyle = colours[bar.term];
      brush.fillRect(left, y, Math.max(right - left, 1), LANE);
      if (right - left > 3) {
        brush.fillStyle = colours.ground;
        brush.fillRect(right - 0.5, y, 0.5, LANE);
      }
      if (right - left > 42) label(bar.family, left, right, y);
      brush.globalAlpha = 1;
    }
    flush();
    if (selected && step.lanes[selected.lane] === lane) {
      const left = toX(selected.begin), right = toX(selected.begin + selected.us);
      brush.strokeStyle = colours.ink;
      brush.lineWidth = 2;
      brush.strokeRect(left, y, Math.max(right - left, 2), LANE);
    }
  }

  function label(text, left, right, y) {
    brush.save();
    brush.beginPath();
    brush.rect(left, y, right - left - 3, LANE);
    brush.clip();
    brush.fillStyle = colours.ground;
    brush.fillText(text, left + 4, y + LANE / 2);
    brush.restore();
  }

  function arrow(bar) {
    const from = bar.launch || bar, to = bar.launch ? bar : bar.work;
    if (!to) return;
    brush.strokeStyle = colours.ink;
    brush.lineWidth = 1.2;
    brush.beginPath();
    brush.moveTo(toX(from.begin), laneY(from.lane) + LANE);
    brush.lineTo(toX(to.begin), laneY(to.lane));
    brush.stroke();
  }

  function look(from, to) {
    const whole = step.wall * 1.02, span = Math.min(Math.max(to - from, MIN_US), whole);
    const start = Math.min(Math.max(from, 0), whole - span);
    view = { from: start, to: start + span };
    draw();
  }

  const zoom = (factor, at) => {
    const centre = at ?? (view.from + view.to) / 2;
    look(centre - (centre - view.from) / factor, centre + (view.to - centre) / factor);
  };
  const pan = (part) => look(view.from + part * (view.to - view.from), view.to + part * (view.to - view.from));
  const whole = () => look(0, step.wall * 1.02);

  function select(bar) {
    selected = bar;
    const place = bar && bar.place ? `, ${bar.place}` : "";
    element("detail").textContent = bar
      ? `${step.lanes[bar.lane].name}: ${bar.kind}, ${bar.family}${place}; begins at ${shown(bar.begin)}, takes ${shown(bar.us)}`
      : "";
    if (bar && (bar.begin + bar.us < view.from || bar.begin > view.to)) {
      const half = (view.to - view.from) / 2;
      look(bar.begin - half, bar.begin + half);
    } else draw();
  }

  /** The next bar of the lane that matches the highlight, forwards or backwards. */
  function next(direction) {
    const lane = step.lanes[selected ? selected.lane : 0].bars;
    let i = selected ? selected.index + direction : firstAfter(lane, view.from);
    while (i >= 0 && i < lane.length && !matches(lane[i])) i += direction;
    if (lane[i]) select(lane[i]);
  }

  function at(x, y) {
    const lane = step.lanes[Math.floor((y - AXIS - GAP / 2) / (LANE + GAP))];
    if (!lane || x < NAMES) return null;
    const reach = (2 * (view.to - view.from)) / across, us = toUs(x);
    for (let i = firstAfter(lane.bars, us - reach); i < lane.bars.length && lane.bars[i].begin <= us + reach; i++) {
      if (lane.bars[i].begin + lane.bars[i].us >= us - reach) return lane.bars[i];
    }
    return null;
  }

  function filter() {
    wanted = field.value.trim().toLowerCase();
    const found = wanted ? step.bars.filter(matches) : [];
    const sum = (device) => shown(found.filter((bar) => (bar.term === "device") === device).reduce((us, bar) => us + bar.us, 0));
    element("matches").textContent = wanted ? `${found.length} of ${step.bars.length} bars; host ${sum(false)}, device ${sum(true)}` : "";
    draw();
  }

  const KEYS = {
    ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6),
    0: whole, Home: () => look(0, view.to - view.from), End: () => look(step.wall - (view.to - view.from), step.wall),
    n: () => next(1), p: () => next(-1), l: () => selected && (selected.launch || selected.work) && select(selected.launch || selected.work),
    Escape: () => select(null),
  };
  canvas.addEventListener("keydown", (event) => {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  canvas.addEventListener("wheel", (event) => {
    // The page scrolls as long as the drawing was not asked for.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, toUs(event.offsetX));
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = { x: event.offsetX, from: view.from, to: view.to, moved: false }; });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    const shift = ((held.x - event.offsetX) / (across - NAMES)) * (held.to - held.from);
    held.moved ||= Math.abs(event.offsetX - held.x) > 3;
    if (held.moved) look(held.from + shift, held.to + shift);
  });
  addEventListener("pointerup", () => { setTimeout(() => { held = null; }); });
  canvas.addEventListener("click", (event) => {
    if (!held || !held.moved) select(at(event.offsetX, event.offsetY));
  });
  document.getElementById("zoom-in").addEventListener("click", () => zoom(2));
  document.getElementById("zoom-out").addEventListener("click", () => zoom(0.5));
  document.getElementById("zoom-reset").addEventListener("click", whole);
  field.addEventListener("input", filter);

  function choose() {
    step = laidOut(data.variants[Number(chooser.value)]);
    selected = null;
    element("detail").textContent = "";
    canvas.setAttribute("aria-label", `Host and device timeline of ${step.name}, ${shown(step.wall)}, ${step.bars.length} bars`);
    view = { from: 0, to: step.wall * 1.02 };
    filter();
  }
  data.variants.forEach((variant, index) => chooser.add(new Option(variant.name, String(index))));
  chooser.addEventListener("change", choose);
  [...TERMS, "device"].forEach((term, index) => {
    const entry = document.createElement("li"), swatch = document.createElement("span");
    swatch.className = `swatch term-${term}`;
    entry.append(swatch, ` ${data.terms[index] ?? "device"}`);
    element("legend").append(entry);
  });
  const repaint = () => { readColours(); draw(); };
  readColours();
  choose();
  addEventListener("resize", draw);
  addEventListener("themechange", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
