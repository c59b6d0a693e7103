// What the widgets with a clip's picture share: Python puts this text before each widget's own.

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const within = (value, least, most) => Math.min(Math.max(value, least), most);
const bytesOf = (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
const inWords = (hz) => `${Math.round(hz).toLocaleString("en")} Hz`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text, never HTML
  return node;
}

function makeButton(name, text, onclick, label = text) {
  const node = make("button", { type: "button", "data-testid": `rl-${name}`, "aria-label": label, title: label }, text);
  node.onclick = onclick;
  return node;
}

// Frequencies as in params.py, on HTK's mel scale. Band 0 is the lowest; a height is 0 at the bottom, 1 at the top.
function addScale(clip) {
  const melOf = (hz) => 2595 * Math.log10(1 + hz / 700);
  const low = melOf(clip.low_hz);
  const step = (melOf(clip.high_hz) - low) / (clip.bands + 1);
  clip.hzOfBand = (band) => 700 * (10 ** ((low + step * (band + 1)) / 2595) - 1);
  clip.hzAt = (height) => clip.hzOfBand(height * clip.bands - 0.5);
  clip.heightOf = (hz) => within(((melOf(hz) - low) / step - 0.5) / clip.bands, 0, 1);
  return clip;
}

// The half of a widget that belongs to the model, one for all views. `onMessage` gets what else Python sends.
// `onLost` is called when the kernel is gone.
function makeEngine(model, onMessage, listeners = {}, onLost = () => {}) {
  const engine = { clip: null, url: "", state: "loading", status: "Loading …", views: new Set() };
  engine.show = (state, status) => {
    Object.assign(engine, { state, status });
    engine.views.forEach((draw) => draw());
  };
  engine.say = (status) => engine.show(engine.state, status);
  const all = {
    comm_live_update: () => (onLost(), engine.say("The kernel is another one: run the cell again")), // JupyterLab's
    ...listeners,
    "msg:custom": (message, views) => {
      const buffers = views.map(bytesOf);
      if (message.kind === "refused") engine.say(message.reason);
      if (message.kind === "clip") {
        URL.revokeObjectURL(engine.url);
        engine.url = URL.createObjectURL(new Blob([buffers.shift()], { type: "image/png" }));
        engine.clip = addScale(message);
      }
      onMessage(message, buffers);
    },
  };
  for (const [event, call] of Object.entries(all)) model.on(event, call);
  engine.close = () => {
    for (const [event, call] of Object.entries(all)) model.off(event, call);
    URL.revokeObjectURL(engine.url);
  };
  return engine;
}

// The figure for readers without a kernel is the output before the widget's: hide it. Returns how to undo that.
function hideFigure(el) {
  for (let node = el, height = 0; node && height < 10; node = node.parentElement, height++) {
    const before = node.previousElementSibling;
    const figure = before?.matches(".rl-static") ? before : before?.querySelector(".rl-static");
    if (figure && figure.textContent.trim() === before.textContent.trim()) {
      before.style.display = "none";
      return () => (before.style.display = "");
    }
    const other = before?.textContent.trim() || before?.querySelector("img, canvas, button, input, .rl-widget");
    if (other || node.matches(".jp-OutputArea, .output")) return null;
  }
}

// The half of a widget that each view has: title, picture with axes, status. `over` lies on the picture.
function makeView(engine, el, name, over) {
  const [title, rows, columns] = ["title", "hz", "s"].map((part) => make("div", { class: `rl-${part}` }));
  const image = make("img", { alt: "", draggable: "false" });
  const plot = make("div", { class: "rl-plot" }, image, over);
  const status = make("div", { class: "rl-dim", role: "status", "aria-live": "polite", "data-testid": "rl-status" });
  const where = make("div", { class: "rl-dim", "data-testid": "rl-where" });
  el.classList.add("rl-widget");
  el.setAttribute("role", "group");
  title.dataset.testid = "rl-title";

  function bar(...groups) {
    el.append(make("div", { class: "rl-bar" }, ...groups.map((nodes) => make("div", { class: "rl-tools" }, ...nodes))));
  }

  const tick = (axis, side, share, text) => axis.append(make("span", { style: `${side}: ${100 * share}%` }, text));

  function drawAxes({ clip } = engine) {
    rows.replaceChildren();
    columns.replaceChildren();
    let below = -1;
    for (const hz of clip.ticks_hz.filter((hz) => clip.low_hz <= hz && hz <= clip.high_hz)) {
      const height = clip.heightOf(hz);
      if ((height - below) * plot.clientHeight >= 15) tick(rows, "bottom", (below = height), inWords(hz));
    }
    const step = STEPS_S.find((s) => (s / clip.duration_s) * plot.clientWidth >= 64) ?? clip.duration_s;
    for (let i = 0; i * step <= clip.duration_s; i++) {
      tick(columns, "left", (i * step) / clip.duration_s, `${Number((i * step).toFixed(3))} s`);
    }
  }

  // Draw what all widgets have; returns the clip, once there is one.
  function drawCommon() {
    const { clip, state } = engine;
    el.dataset.state = state;
    status.textContent = engine.status;
    for (const node of el.querySelectorAll("button, input")) node.disabled = !clip;
    if (clip && image.src !== engine.url) {
      el.setAttribute("aria-label", `${name} ${clip.title}`);
      title.textContent = clip.title;
      Object.assign(image, { src: engine.url, alt: clip.description });
      drawAxes();
    }
    return clip;
  }

  // Where the pointer is, said and returned: shares of the width and (from the top) the height, seconds, hertz.
  function at(event) {
    const area = plot.getBoundingClientRect();
    const x = within((event.clientX - area.left) / area.width, 0, 1);
    const y = within((event.clientY - area.top) / area.height, 0, 1);
    const [s, hz] = [x * engine.clip.duration_s, engine.clip.hzAt(1 - y)];
    where.textContent = `${s.toFixed(2)} s · ${inWords(hz)}`;
    return { x, y, s, hz };
  }

  // `key` says whether it took a key; what it leaves to the browser must not reach the notebook's shortcuts either.
  function start(draw, key, stop) {
    let restore = null;
    const observer = new ResizeObserver(() => {
      if (engine.clip) drawAxes();
      draw();
      if (el.isConnected) restore ??= hideFigure(el);
    });
    observer.observe(plot);
    el.onkeydown = (event) => {
      const input = event.target.matches("input") || (event.target.matches("button") && /^( |Enter)$/.test(event.key));
      if (engine.clip && key(event, input)) event.preventDefault();
      else if (event.ctrlKey || event.metaKey || event.altKey) return; // Ctrl + S and the like are the notebook's
      event.stopPropagation();
    };
    engine.views.add(draw);
    draw();
    return () => {
      engine.views.delete(draw);
      observer.disconnect();
      restore?.();
      stop?.();
    };
  }

  el.append(title, make("div", { class: "rl-frame" }, rows, plot, columns));
  return { plot, bar, drawCommon, at, status, where, start };
}

// A widget out of its two halves; a module's default export.
function makeWidget(engineOf, viewOf) {
  let engine = null;
  return {
    initialize({ model }) {
      engine = engineOf(model);
      model.send({ kind: "ready" });
      return engine.close;
    },
    render: ({ model, el }) => viewOf(engine, el, model),
  };
}
