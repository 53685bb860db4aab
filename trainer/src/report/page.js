"use strict";
// Draws the charts of a page from the JSON in it, and makes its controls work. No library, no request but where the page
// is watched (`trainer watch`): then it is told of changes and asks for what it shows again.
(() => {
  const W = 480, H = 214, LEFT = 54, RIGHT = 20, TOP = 10, BOTTOM = 36, COLOURS = 8;
  const one = (what, of = document) => of.querySelector(what);
  const all = (what, of = document) => [...of.querySelectorAll(what)];
  const safe = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
  const key = (chart, line) => `${chart.title}\n${line.name}`;
  let data = JSON.parse(one("#data").textContent);
  // What the person has chosen: the axis, smoothing, the place on the axis pointed at, lines that are off, pictures by kind.
  const view = { axis: "steps", smooth: 0, at: null, off: new Set(), frame: {} };

  // Four significant digits.
  function short(v) {
    const size = Math.abs(v);
    if (v === 0) return "0";
    if (!Number.isFinite(v)) return "–";
    if (size < 1e-3 || size >= 1e6) return v.toExponential(1);
    const text = v.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
    return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }
  const compact = v =>
    v >= 1e6 ? short(v / 1e6) + "M" : v >= 1e4 ? short(v / 1e3) + "k" : short(v);

  // A range that is not empty.
  function wide([low, high]) {
    if (high - low > 1e-9 * Math.max(Math.abs(high), Math.abs(low), 1e-300)) return [low, high];
    const by = Math.abs(low) < 1e-300 ? 1 : 0.1 * Math.abs(low);
    return [low - by, high + by];
  }

  // Three to six round numbers within a range.
  function ticks([low, high]) {
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const by = [1, 2, 2.5, 5, 10].map(m => m * power).find(m => m >= rough) || 10 * power;
    const first = Math.ceil(low / by), count = Math.floor(high / by) - first + 1;
    return count > 0 && count < 20 ? Array.from({ length: count }, (_, i) => (first + i) * by) : [];
  }

  // An average that forgets, without the pull of its beginning.
  function smoothed(values) {
    let sum = 0, weight = 0;
    return values.map(v => {
      sum = view.smooth * sum + (1 - view.smooth) * v;
      weight = view.smooth * weight + (1 - view.smooth);
      return sum / weight;
    });
  }

  // Where the lines of a chart are, and how its axes map. Nothing if every line is off.
  function plan(chart) {
    const lines = chart.lines.map((line, i) => ({
      ...line,
      colour: i % COLOURS,
      dash: i >= COLOURS ? ' stroke-dasharray="6 3"' : "",
      off: view.off.has(key(chart, line)),
      steps: chart.x[line.x].steps,
      x: chart.x[line.x][chart.spark ? "steps" : view.axis],
      shown: view.smooth > 0 && line.best === undefined ? smoothed(line.mean) : line.mean,
    }));
    const on = lines.filter(line => !line.off);
    const range = lists => lists.flat().reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    if (!on.length) return { lines, on };
    let x = range(on.map(line => line.x));
    const inHours = view.axis === "minutes" && x[1] > 120;
    x = wide(x);
    const ends = range(on.flatMap(line => [line.low || line.mean, line.high || line.mean]));
    // Values over more than two magnitudes are told apart on a logarithmic axis alone.
    const log = ends[0] > 0 && ends[1] / ends[0] > 100;
    const of = v => (log ? Math.log10(v) : v);
    const y = wide(ends.map(of));
    const [left, right, top, bottom] = chart.spark ? [2, 2, 3, 3] : [LEFT, RIGHT, TOP, BOTTOM];
    const height = chart.spark ? 60 : H;
    const atX = v => left + ((v - x[0]) / (x[1] - x[0])) * (W - left - right);
    const atY = v => height - bottom - ((of(v) - y[0]) / (y[1] - y[0])) * (height - top - bottom);
    return { lines, on, x, y, log, inHours, atX, atY, left, right, top, bottom, height };
  }

  function drawing(chart, p) {
    let out = "";
    const at = v => v.toFixed(1);
    if (!chart.spark) {
      for (const tick of ticks(p.y)) {
        const value = p.log ? 10 ** tick : tick, h = p.atY(value);
        out += `<path class="line" d="M${LEFT} ${at(h)}H${W - RIGHT}"/>` +
          `<text x="${LEFT - 6}" y="${at(h + 3.5)}" text-anchor="end">${short(value)}</text>`;
      }
      const by = p.inHours ? 60 : 1;
      for (const tick of ticks(p.x.map(v => v / by)))
        out += `<text x="${at(p.atX(tick * by))}" y="${H - BOTTOM + 15}" text-anchor="middle">${compact(tick)}</text>`;
      const unit = view.axis === "steps" ? "step" : `${p.inHours ? "hours" : "minutes"} of training`;
      out += `<text x="${W - RIGHT}" y="${H - 4}" text-anchor="end">${unit}</text>`;
      const seen = new Set();
      for (const mark of data.marks) {
        const x = p.atX(view.axis === "steps" ? mark.step : mark.minutes), place = Math.round(x);
        if (x < LEFT || x > W - RIGHT || seen.has(place)) continue;
        seen.add(place);
        out += `<path class="mark" d="M${place} ${TOP}V${H - BOTTOM}"><title>${safe(mark.text)}</title></path>`;
      }
    }
    for (const line of p.on) {
      const path = values => line.x.map((x, i) => `${at(p.atX(x))},${at(p.atY(values[i]))}`);
      if (line.low && !chart.spark)
        out += `<polygon class="band c${line.colour}" points="${path(line.high).join(" ")} ${path(line.low).reverse().join(" ")}"/>`;
      if (line.shown !== line.mean && !line.low)
        out += `<polyline class="raw c${line.colour}" points="${path(line.mean).join(" ")}"/>`;
      out += `<polyline class="c${line.colour}"${line.dash} points="${path(line.shown).join(" ")}"/>`;
      const dots = line.best !== undefined ? line.x.map((_, i) => i) : line.x.length === 1 ? [0] : [];
      for (const i of dots) {
        const what = i === line.best ? "best" : i === line.x.length - 1 ? "newest" : "";
        out += `<circle class="c${line.colour}${what && " " + what}" cx="${at(p.atX(line.x[i]))}" cy="${at(p.atY(line.mean[i]))}" ` +
          `r="${what === "best" ? 5 : 3}"><title>${safe(`${line.name}, step ${line.steps[i]}: ${short(line.mean[i])} ${what}`)}</title></circle>`;
      }
    }
    return out + '<g class="cursor"></g>';
  }

  // Number of the point nearest to v.
  function nearest(values, v) {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < v) low = middle; else high = middle;
    }
    return v - values[low] < values[high] - v ? low : high;
  }

  // Whether a line has a point about there.
  function reaches(line, at) {
    const last = line.x.length - 1, gap = last ? (line.x[last] - line.x[0]) / last : 0;
    return at >= line.x[0] - gap && at <= line.x[last] + gap;
  }

  const time = minutes => (minutes > 120 ? short(minutes / 60) + " hours" : short(minutes) + " minutes");

  // The values of a chart at the place pointed at, or the newest.
  function point(figure) {
    const { chart, p } = figure.drawn;
    if (chart.spark) return;
    let cursor = "", where = "";
    p.lines.forEach((line, number) => {
      const last = line.x.length - 1, newest = view.at === null;
      const i = newest ? last : nearest(line.x, view.at);
      const there = newest || reaches(line, view.at);
      const value = one(`[data-line="${number}"] b`, figure);
      value.textContent = !there ? "–" : short(line.shown[i]) + (line.best !== undefined && newest && line.best !== last
        ? `, best ${short(line.mean[line.best])} at ${compact(line.steps[line.best])}` : "");
      if (newest || line.off || !there) return;
      const x = p.atX(line.x[i]).toFixed(1);
      if (!cursor) {
        cursor = `<path class="at" d="M${x} ${TOP}V${H - BOTTOM}"/>`;
        const { steps, minutes } = chart.x[chart.lines[number].x];
        // Runs of their own pace have a step or a time in common, not both.
        const [step, minute] = [`step ${compact(steps[i])}`, time(minutes[i])];
        where = chart.x.length === 1 ? `${step}, ${minute}` : view.axis === "steps" ? step : minute;
      }
      cursor += `<circle class="c${line.colour}" cx="${x}" cy="${p.atY(line.shown[i]).toFixed(1)}" r="3"/>`;
    });
    if (p.on.length) one(".cursor", figure).innerHTML = cursor;
    one(".where", figure).textContent = where;
  }

  function draw(figure) {
    const chart = data.charts[figure.dataset.chart];
    if (!chart) return;
    const p = plan(chart);
    figure.drawn = { chart, p };
    const plot = one(".plot", figure);
    const said = p.lines.map(line => `${line.name} ${short(line.mean[line.mean.length - 1])}`).join(", ");
    const name = safe(`${chart.title}: ${said}`);
    if (chart.spark) {
      plot.innerHTML = p.on.length ? `<svg viewBox="0 0 ${W} 60" role="img" aria-label="${name}" preserveAspectRatio="none">${drawing(chart, p)}</svg>` : "";
      return;
    }
    // Kept, so that a key press does not take the focus away.
    let svg = one("svg", plot);
    if (!svg) {
      plot.innerHTML = `<svg viewBox="0 0 ${W} ${H}" tabindex="0" role="img"></svg>`;
      svg = one("svg", plot);
    }
    svg.setAttribute("aria-label", `${chart.title}: ${said}. Arrow keys move along the curve.`);
    svg.innerHTML = p.on.length ? drawing(chart, p) : "";
    one(".log", figure).textContent = p.log ? "logarithmic axis" : "";
    const legend = one(".legend", figure), names = p.lines.map(line => line.name).join("\n");
    // Kept too, where its lines are the same.
    if (legend.dataset.names !== names) {
      legend.innerHTML = p.lines.map((line, i) =>
        `<button type="button" class="c${line.colour}" data-line="${i}">${safe(line.name)} <b></b></button>`).join("");
      legend.dataset.names = names;
    }
    p.lines.forEach((line, i) => one(`[data-line="${i}"]`, legend).setAttribute("aria-pressed", !line.off));
    point(figure);
  }

  const charts = () => all("figure[data-chart]");
  const redraw = () => charts().forEach(draw);
  const repoint = () => charts().forEach(figure => figure.drawn && point(figure));

  // The picture of a kind that is chosen, by the number of its step; the newest without a choice.
  function show(frames) {
    const pictures = all("img", frames), slider = one("input", frames);
    const chosen = pictures.findIndex(picture => picture.dataset.step === view.frame[frames.dataset.kind]);
    const at = chosen < 0 ? pictures.length - 1 : chosen;
    pictures.forEach((picture, i) => { picture.hidden = i !== at; });
    one("output", frames).textContent = pictures[at].alt;
    if (slider) {
      slider.value = at;
      slider.setAttribute("aria-valuetext", pictures[at].alt);
    }
  }
  const frames = () => all(".frames").forEach(show);

  document.addEventListener("input", event => {
    const { target } = event;
    if (target.name === "axis") { view.axis = target.value; view.at = null; redraw(); }
    if (target.name === "smooth") {
      view.smooth = +target.value;
      one("output", target.parentNode).textContent = target.value;
      redraw();
    }
    const kind = target.closest(".frames");
    if (kind) {
      const pictures = all("img", kind);
      // At its end it stays with the newest.
      view.frame[kind.dataset.kind] = +target.value === pictures.length - 1 ? undefined : pictures[target.value].dataset.step;
      show(kind);
    }
  });

  document.addEventListener("click", event => {
    const button = event.target.closest("[data-line]");
    if (!button) return;
    const figure = button.closest("figure"), { chart } = figure.drawn;
    const name = key(chart, chart.lines[button.dataset.line]);
    if (!view.off.delete(name)) view.off.add(name);
    draw(figure);
  });

  // The point of a chart that is nearest to a place on the screen.
  const follow = event => {
    const svg = event.target.closest && event.target.closest("figure[data-chart] svg");
    const figure = svg && svg.closest("figure");
    if (!figure || figure.drawn.chart.spark || !figure.drawn.p.on.length) {
      if (view.at !== null && !(document.activeElement && document.activeElement.closest("svg"))) { view.at = null; repoint(); }
      return;
    }
    const { p } = figure.drawn, box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * W - LEFT) / (W - LEFT - RIGHT);
    const wanted = p.x[0] + share * (p.x[1] - p.x[0]);
    const points = p.on.map(line => line.x[nearest(line.x, wanted)]);
    view.at = points.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
    repoint();
  };
  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);

  document.addEventListener("keydown", event => {
    const svg = event.target.closest && event.target.closest("figure[data-chart] svg");
    const figure = svg && svg.closest("figure");
    if (!figure || !figure.drawn.p.on.length) return;
    const all = [...new Set(figure.drawn.p.on.flatMap(line => line.x))].sort((a, b) => a - b), last = all.length - 1;
    const at = view.at === null ? last : nearest(all, view.at);
    const to = { ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, last), Home: 0, End: last }[event.key];
    if (to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    view.at = to === undefined ? null : all[to];
    repoint();
    // Said once, by the chart that is moved along.
    const values = [...figure.querySelectorAll(".legend button")].map(button => button.innerText);
    one("#said").textContent = [one(".where", figure).textContent, ...values].join(", ");
  });
  document.addEventListener("focusout", event => {
    if (event.target.closest("svg") && view.at !== null) { view.at = null; repoint(); }
  });

  // A watched page asks for itself again when it is told of a change; parts that are as before are left alone.
  const { live } = document.body.dataset;
  if (live !== undefined) {
    const parts = {};
    all("[data-part]").forEach(part => { parts[part.dataset.part] = part.innerHTML; });
    let asking = false, again = false;
    const ask = async () => {
      if (asking) { again = true; return; }
      asking = true;
      try {
        const said = await fetch("page.json", { cache: "no-store" });
        if (said.status === 404) {
          one("#told").textContent = "this run is no longer here; what is shown is its last state";
          asking = false;
          return;
        }
        if (!said.ok) throw new Error(said.status);
        const page = await said.json();
        data = page.data;
        for (const [id, html] of page.parts) {
          const part = one(`[data-part="${id}"]`);
          if (!part || parts[id] === html) continue;
          parts[id] = html;
          const open = all("details", part).map(details => details.open);
          const held = part.contains(document.activeElement) && document.activeElement.closest(".frames");
          part.innerHTML = html;
          const slider = held && all(".frames input", part).find(input => input.closest(".frames").dataset.kind === held.dataset.kind);
          if (slider) slider.focus();
          all("details", part).forEach((details, i) => { details.open = open[i] || false; });
        }
        redraw();
        frames();
        one("#told").textContent = "";
      } catch (error) {
        one("#told").textContent = "no answer; trying again";
        setTimeout(ask, 3000);
      }
      asking = false;
      if (again) { again = false; ask(); }
    };
    const events = new EventSource("/events");
    events.onmessage = event => {
      const changed = JSON.parse(event.data);
      if (live === "" || changed.includes(live)) ask();
    };
    // A watcher that comes back has missed changes.
    let before = false;
    events.onopen = () => { if (before) ask(); before = true; };
    events.onerror = () => { one("#told").textContent = "no answer; trying again"; };
  }

  redraw();
  frames();
  document.documentElement.dataset.drawn = "";
})();
