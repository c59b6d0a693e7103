// What the widgets share: Python puts this text before each widget's own.

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const within = (value, least, most) => Math.min(Math.max(value, least), most);
const bytesOf = (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
const inWords = (hz) => `${Math.round(hz).toLocaleString("en")} Hz`;

// Give a node attributes, and functions for its events: `onclick` and the like. They are no properties of the node, for
// what a function returns there has a meaning: after `false` a key that was pressed has no effect.
function setAll(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else node.setAttribute(name, value);
  }
  return node;
}

function make(tag, attributes = {}, ...children) {
  const node = setAll(document.createElement(tag), attributes);
  node.append(...children); // strings become text, never HTML
  return node;
}

const makeButton = (name, text, onclick, label = text) =>
  make("button", { type: "button", "data-testid": `rl-${name}`, "aria-label": label, title: label, onclick }, text);

// Set a text only where it is another: a screen reader reads aloud what is set.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Plain keys pressed in a widget are its own; Ctrl + S and the like are the notebook's.
const isPlain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;
function keepPlainKeys(el) {
  el.addEventListener("keydown", (event) => {
    if (isPlain(event)) event.stopPropagation();
  });
}

// Frequencies as in params.py, on HTK's mel scale. Band 0 is the lowest; a height is 0 at the bottom, 1 at the top.
function addScale(clip) {
  const melOf = (hz) => 2595 * Math.log10(1 + hz / 700);
  const low = melOf(clip.low_hz);
  const step = (melOf(clip.high_hz) - low) / (clip.bands + 1);
  const hzOfBand = (band) => 700 * (10 ** ((low + step * (band + 1)) / 2595) - 1);
  const hzAt = (height) => hzOfBand(height * clip.bands - 0.5);
  const heightOf = (hz) => within(((melOf(hz) - low) / step - 0.5) / clip.bands, 0, 1);
  return Object.assign(clip, { hzOfBand, hzAt, heightOf });
}

// Some front ends lose the bytes that come with a message. Python then sends a figure with a plain player as text.
const LOST_BYTES = "This front end drops the bytes of sounds and pictures: here is a plain figure instead.";
const LOST_FILE = "This front end drops the bytes of files: clip.save(…) in a cell writes the file where the kernel runs.";

// The half of a widget that belongs to the model, one for all views. `answers` has what to do with Python's messages,
// by their kind, and `changes` with new values of its traits; `halt` is called when the kernel or the model is gone.
function makeEngine(model, answers, changes = {}, halt = () => {}) {
  const engine = { clip: null, plain: "", url: "", state: "loading", status: "Loading …", views: new Set() };
  engine.show = (state, status) => Object.assign(engine, { state, status }).views.forEach((draw) => draw());
  engine.say = (status) => engine.show(engine.state, status);
  const all = {
    comm_live_update: () => (halt(), engine.say("The kernel is another one: run the cell again")), // JupyterLab's
    "msg:custom": (message, views) => {
      const buffers = (views ?? []).map(bytesOf);
      if (message.kind === "refused") engine.say(message.reason);
      if (message.kind === "plain") {
        engine.plain = message.html;
        engine.show("plain", LOST_BYTES);
      }
      if (message.kind === "clip" && !buffers.length) {
        halt(); // what plays is not the clip any more
        model.send({ kind: "plain" });
        return;
      }
      if (message.kind === "file" && !buffers.length) {
        engine.say(LOST_FILE);
        return;
      }
      if (message.kind === "clip") {
        URL.revokeObjectURL(engine.url);
        engine.url = URL.createObjectURL(new Blob([buffers.shift()], { type: "image/png" }));
        engine.clip = addScale(message);
      }
      answers[message.kind]?.(message, ...buffers);
    },
  };
  for (const [name, call] of Object.entries(changes)) {
    all[`change:${name}`] = () => (call(model.get(name)), engine.say(engine.status));
  }
  const listen = (onOrOff) => Object.entries(all).forEach(([event, call]) => model[onOrOff](event, call));
  listen("on");
  engine.close = () => (halt(), listen("off"), URL.revokeObjectURL(engine.url));
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
  const part = (name, attributes) => make("div", { "data-testid": `rl-${name}`, class: `rl-${name}`, ...attributes });
  const [title, rows, columns] = ["title", "hz", "s"].map((name) => part(name));
  const status = part("status", { class: "rl-dim", role: "status", "aria-live": "polite" });
  const where = part("where", { class: "rl-dim" });
  const plain = make("div", { "data-testid": "rl-plain" });
  let drawn = ""; // the figure in `plain`
  const image = make("img", { alt: "", draggable: "false" });
  const plot = make("div", { class: "rl-plot" }, image, over);
  setAll(over, { class: "rl-over", "data-testid": "rl-picture", tabindex: 0 });
  setAll(el, { role: "group" }).classList.add("rl-widget");
  el.append(title, make("div", { class: "rl-frame" }, rows, plot, columns));

  const bar = (...groups) =>
    el.append(make("div", { class: "rl-bar" }, ...groups.map((nodes) => make("div", { class: "rl-tools" }, ...nodes))));
  const tick = (axis, side, share, text) => axis.append(make("span", { style: `${side}: ${100 * share}%` }, text));

  function drawAxes({ clip } = engine) {
    for (const axis of [rows, columns]) axis.replaceChildren();
    let below = -1;
    for (const hz of clip.ticks_hz.filter((hz) => clip.low_hz <= hz && hz <= clip.high_hz)) {
      const height = clip.heightOf(hz);
      if ((height - below) * plot.clientHeight >= 15) tick(rows, "bottom", (below = height), inWords(hz));
    }
    const step = STEPS_S.find((s) => (s / clip.duration_s) * plot.clientWidth >= 64) ?? clip.duration_s;
    const tickAt = (s) => tick(columns, "left", s / clip.duration_s, `${Number(s.toFixed(3))} s`);
    for (let i = 0; i * step <= clip.duration_s; i++) tickAt(i * step);
  }

  // Show the figure in place of all else but the status. Python has escaped what users wrote in it.
  function drawPlain() {
    if (drawn === engine.plain) return;
    drawn = engine.plain;
    plain.innerHTML = engine.plain;
    el.replaceChildren(status, plain);
  }

  // Draw what all widgets have; returns the clip, once there is one.
  function drawCommon({ clip } = engine) {
    setAll(el, { "data-state": engine.state, "aria-label": clip ? `${name} ${clip.title}` : name });
    status.textContent = engine.status;
    for (const node of el.querySelectorAll("button, input")) node.disabled = !clip;
    if (engine.plain) drawPlain();
    if (clip && image.src !== engine.url) {
      title.textContent = clip.title;
      setAll(image, { src: engine.url, alt: clip.description });
      drawAxes();
    }
    return clip;
  }

  // Where the pointer is, said and returned: shares of the width and (from the top) the height, seconds, hertz.
  function at(event) {
    const { left, top, width, height } = plot.getBoundingClientRect();
    const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height].map((share) => within(share, 0, 1));
    const [s, hz] = [x * engine.clip.duration_s, engine.clip.hzAt(1 - y)];
    where.textContent = `${s.toFixed(2)} s · ${inWords(hz)}`;
    return { x, y, s, hz };
  }

  // `pointer` has what to do when it goes down, moves, goes up, is cancelled or leaves, given the place where it is.
  // `actOf` gives what a key does; what it leaves to the browser must not reach the notebook's shortcuts either.
  function start(draw, pointer, actOf, stop = () => {}) {
    let restore = null;
    const observer = new ResizeObserver(() => {
      if (engine.clip) drawAxes();
      draw();
      if (el.isConnected) restore ??= hideFigure(el);
    });
    observer.observe(plot);
    for (const name of ["down", "move", "up", "cancel", "leave"]) {
      over.addEventListener(`pointer${name}`, (event) => {
        if (!engine.clip || (name === "down" && event.button)) return;
        if (name === "down") over.setPointerCapture(event.pointerId);
        pointer[name]?.(at(event));
        if (name === "leave") where.textContent = "";
      });
    }
    keepPlainKeys(el);
    el.addEventListener("keydown", (event) => {
      const isPress = event.target.matches("button") && /^( |Enter)$/.test(event.key);
      const act = engine.clip && actOf(event, isPress || event.target.matches("input"));
      if (!act) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
    engine.views.add(draw);
    draw();
    return () => (engine.views.delete(draw), observer.disconnect(), restore?.(), stop());
  }

  return { plot, bar, drawCommon, status, where, start };
}

// A widget out of its two halves; a module's default export.
function makeWidget(engineOf, viewOf) {
  let engine = null;
  function initialize({ model }) {
    engine = engineOf(model);
    model.send({ kind: "ready" });
    return engine.close;
  }
  return { initialize, render: ({ model, el }) => viewOf(engine, el, model) };
}
