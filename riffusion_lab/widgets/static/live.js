// Music without an end: asks the kernel for clips, joins them on the sample clock, and shows what is heard.

const [POLL_MS, TICK_MS] = [500, 250];
const AHEAD_S = 2; // what comes next is decided this long before it sounds
const [SPAN_S, NOW] = [8, 0.7]; // seconds on the screen, and where there the present is
const KEPT_S = SPAN_S + 2;

// A sound with what sounds on from before fading out under its beginning; as riffusion_lab.join.crossfade.
function crossfade(tail, sound, length) {
  const joined = Float32Array.from(sound);
  const sum = (a, b) => a.subarray(0, length).reduce((total, value, i) => total + value * b[i], 0);
  const power = sum(tail, tail) * sum(sound, sound);
  const likeness = power > 0 ? Math.max(0, sum(tail, sound) / Math.sqrt(power)) : 0;
  for (let i = 0; i < length; i++) {
    const [falling, rising] = [Math.cos, Math.sin].map((curve) => curve((Math.PI / 2) * (i / length)));
    joined[i] = (falling * tail[i] + rising * sound[i]) / Math.sqrt(1 + 2 * likeness * rising * falling);
  }
  return joined;
}

// Clips in the order in which they sound. Every clip is a loop: it may come round again, and its own beginning is
// what sounds on while the next one fades in.
function makeTimeline(context, output, fade) {
  const rate = context.sampleRate;
  const line = { entries: [], joins: 0, repeats: 0, underruns: 0, jump: 0 };
  let [cursor, last] = [null, null]; // frame at which the next clip begins; the clip before

  line.left = () => (cursor === null ? 0 : cursor / rate - context.currentTime);

  line.add = (clip) => {
    const now = Math.ceil(context.currentTime * rate);
    if (cursor === null || cursor < now) {
      line.underruns += cursor !== null;
      [cursor, last] = [now + Math.round(0.05 * rate), null];
    }
    const isNew = last !== clip;
    const from = last?.samples ?? new Float32Array(fade); // out of silence it fades in
    const samples = isNew ? crossfade(from, clip.samples, fade) : clip.samples;
    if (last) {
      line.jump = Math.max(line.jump, Math.abs(samples[0] - last.samples.at(-1)));
      line[isNew ? "joins" : "repeats"]++;
    }
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = Object.assign(context.createBufferSource(), { buffer });
    source.connect(output);
    source.start(cursor / rate);
    line.entries.push({ clip, source, start: cursor / rate, stop: (cursor += samples.length) / rate, begun: false });
    last = clip;
  };

  // Forget what is over, and give the numbers of the clips that have begun to sound since the last call.
  line.begun = (time) => {
    line.entries = line.entries.filter((entry) => entry.stop > time - KEPT_S);
    const begun = line.entries.filter((entry) => !entry.begun && entry.start <= time);
    for (const entry of begun) entry.begun = true;
    return begun.map((entry) => entry.clip.number);
  };

  line.stop = () => {
    for (const entry of line.entries) entry.source.stop();
    [cursor, last] = [null, null];
  };
  return line;
}

const LOST_SOUND =
  "This front end drops the bytes of sounds, so Live cannot play here. It plays in JupyterLab; " +
  "in any notebook riffusion_lab.widgets.Session makes the same clips, to be shown one by one.";

// Which clip comes next: the first that is wanted, else one made for a prompt that has changed, else the last again.
function pickNext(waiting, wanted, last) {
  const next = waiting.find((clip) => wanted.includes(clip.number)) ?? waiting[0];
  return next ? { clip: next, waiting: waiting.filter((clip) => clip.number > next.number) } : { clip: last, waiting };
}

function makeLive(model) {
  const live = { state: "ready", said: "", status: {}, facts: null, views: new Set(), line: null, time: 0 };
  let [context, volume, timers, last] = [null, null, [], null];
  let [waiting, have, answered] = [[], 0, 0];

  live.show = () => live.views.forEach((view) => view());
  live.send = (message) => model.send(message);

  // The time on the context's clock of what comes out of the loudspeaker now.
  live.now = () => {
    if (context?.state !== "running") return live.time;
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    const behind = context.outputLatency || context.baseLatency || 0;
    const late = contextTime ? contextTime + (performance.now() - performanceTime) / 1000 : context.currentTime - behind;
    return (live.time = Math.max(live.time, Math.min(late, context.currentTime)));
  };

  function poll() {
    model.send({ kind: "poll", have, begun: live.line.begun(live.now()) });
    live.show();
  }

  function tick() {
    if (live.state === "waiting" && waiting.length) live.state = "playing";
    if (live.state !== "playing") return;
    while (live.line.left() < AHEAD_S) {
      const next = pickNext(waiting, live.status.ready ?? [], last);
      live.behind = next.clip === last;
      [last, waiting] = [next.clip, next.waiting];
      live.line.add(last);
    }
  }

  live.play = () => {
    if (live.state === "ended") return;
    if (!context) {
      context = new AudioContext({ sampleRate: live.facts.sample_rate, latencyHint: "playback" });
      volume = new GainNode(context, { gain: model.get("volume") });
      volume.connect(context.destination);
      live.line = makeTimeline(context, volume, live.facts.fade);
    }
    context.resume(); // at once: only a click may
    answered = Date.now();
    live.state = last ? "playing" : "waiting";
    timers.forEach(clearInterval);
    timers = [setInterval(poll, POLL_MS), setInterval(tick, TICK_MS)];
    poll();
  };

  function halt(state, said) {
    timers.forEach(clearInterval);
    Object.assign(live, { state, said });
    live.show();
  }

  live.pause = () => {
    live.now(); // where it stays
    context?.suspend();
    halt("paused", "");
  };

  live.end = (reason) => {
    if (context) (live.line.stop(), context.close());
    context = null;
    halt("ended", reason);
  };

  live.isPlaying = () => live.state === "playing" || live.state === "waiting";
  live.isStuck = () => live.state === "playing" && Date.now() - answered > 4000;

  const listeners = {
    "msg:custom": async (message, views) => {
      answered = Date.now();
      if (message.kind === "facts") live.facts = message;
      if (message.kind === "status") live.status = message;
      if (message.kind === "said" || message.kind === "refused") live.said = message.text;
      if (message.kind === "clip" && !views?.length) {
        live.end(LOST_SOUND);
        return;
      }
      if (message.kind === "clip" && message.number > have) {
        have = message.number;
        const [samples, picture] = views.map(bytesOf);
        const clip = { ...message, samples: Float32Array.from(new Int16Array(samples), (value) => value / 32767) };
        waiting.push(clip);
        tick();
        clip.picture = await createImageBitmap(new Blob([picture], { type: "image/png" }));
      }
      live.show();
    },
    "change:volume": () => volume?.gain.setTargetAtTime(model.get("volume"), volume.context.currentTime, 0.01),
    // The kernel was restarted or has died; the first change says that it lives.
    comm_live_update: () => live.facts && live.end("The kernel has ended, and the music with it: run the cell again."),
  };
  const listen = (onOrOff) => Object.entries(listeners).forEach(([event, call]) => model[onOrOff](event, call));
  live.close = () => (listen("off"), live.end(""));
  listen("on");
  return live;
}

function statusText(live) {
  const { error = "", remarks = [], stopped } = live.status;
  if (live.state === "ended") return live.said;
  if (error) return `No new clip could be made (${error}). The last one goes round; “Try again”, or another prompt.`;
  if (stopped) return "The session was stopped in the kernel: run the cell again.";
  if (live.isStuck()) return "The kernel is busy: the last clip goes round until it answers.";
  if (live.state === "playing" && live.behind) return "Falling behind: the last clip goes round until the next is made.";
  if (live.state === "waiting") return "Making the first clip …";
  return live.said || remarks.join(" ");
}

function viewLive(live, el, model) {
  const canvas = make("canvas", { class: "rl-strip", role: "img", "data-testid": "rl-strip" });
  const prompt = make("input", { type: "text", "aria-label": "Prompt", placeholder: "What next?", maxlength: "4000" });
  const [now, next, progress] = ["now", "next", "progress"].map((name) => make("div", { "data-testid": `rl-${name}` }));
  const status = make("div", { class: "rl-dim", role: "status", "aria-live": "polite", "data-testid": "rl-status" });
  const play = makeButton("play", "Play", () => (live.isPlaying() ? live.pause() : live.play()));
  const add = makeButton("add", "Add", send, "Add the prompt");
  const retry = makeButton("retry", "Try again", () => live.send({ kind: "retry" }));
  const takeUp = () => live.send({ kind: "record", on: !live.status.recording });
  const record = makeButton("record", "Record", takeUp, "Record what is heard to a file");
  const keep = makeButton("keep", "Keep recipe", () => live.send({ kind: "keep" }), "Save what plays the session again");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let [frame, stamp] = [0, 0];

  function send() {
    live.said = "";
    live.send({ kind: "prompt", text: prompt.value });
    prompt.select(); // a refused one can be mended
  }

  function slider(label, least, most, step, value, onchange) {
    const range = { type: "range", min: least, max: most, step, value, "aria-label": label };
    const input = make("input", { ...range, "data-testid": `rl-${label.toLowerCase()}` });
    const shown = make("output", { class: "rl-time" }, String(value));
    input.oninput = () => (shown.textContent = input.value);
    input.onchange = () => onchange(Number(input.value));
    return make("label", {}, label, input, shown);
  }

  function draw() {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
    const [pen, time, perS] = [canvas.getContext("2d"), live.now(), width / SPAN_S];
    pen.scale(devicePixelRatio, devicePixelRatio);
    pen.fillRect(0, 0, width, height);
    Object.assign(pen, { font: "12px sans-serif", fillStyle: "#fff", lineWidth: 3 });
    for (const { clip, start, stop } of live.line?.entries ?? []) {
      const x = NOW * width + (start - time) * perS;
      if (clip.picture) pen.drawImage(clip.picture, x, 0, (stop - start) * perS + 0.5, height);
      pen.fillRect(x, 0, 1, 20);
      for (const write of ["strokeText", "fillText"]) pen[write](clip.label, x + 5, 14, (stop - start) * perS - 10);
    }
    pen.fillRect(NOW * width - 1, 0, 2, height);
  }

  function animate(at) {
    frame = live.state === "playing" && el.isConnected ? requestAnimationFrame(animate) : 0;
    if (!still || !frame || at - stamp > 1000) draw((stamp = at));
  }

  function show() {
    if (!live.facts) return;
    if (!el.dataset.state) addControls();
    const { line, status: said } = live;
    const time = live.now();
    const entry = line?.entries.findLast((entry) => entry.start <= time);
    const { number: clip = 0, label = "" } = entry?.clip ?? {};
    now.textContent = entry ? `Now: ${label}` : "";
    next.textContent = said.queue?.length ? `Then: ${said.queue.join(" · ")}` : "";
    progress.style.width = `${100 * (said.progress ?? 0)}%`;
    status.textContent = statusText(live);
    play.textContent = play.ariaLabel = live.isPlaying() ? "Pause" : "Play";
    record.textContent = said.recording ? "Stop recording" : "Record";
    record.ariaPressed = String(Boolean(said.recording));
    retry.hidden = !said.error;
    for (const node of el.querySelectorAll("button, input")) node.disabled = live.state === "ended";
    canvas.setAttribute("aria-label", `Spectrogram of the last seconds. ${now.textContent}`);
    const { joins = 0, repeats = 0, underruns = 0, jump = 0 } = line ?? {};
    const began = (entry?.start ?? 0).toFixed(3); // when what is heard did, on the clock of ctxTime
    const seen = { state: live.state, behind: Boolean(live.behind), ctxTime: time.toFixed(3), clip, label, began };
    Object.assign(el.dataset, seen, { joins, repeats, underruns, jump: jump.toFixed(5) });
    if (live.state === "playing") frame ||= requestAnimationFrame(animate);
    else draw();
  }

  function addControls() {
    const { guidance_scale, strength } = live.facts;
    const change = (name) => (value) => live.send({ kind: "change", [name]: value });
    const setVolume = (value) => (model.set("volume", value), model.save_changes());
    const sliders = [
      slider("Guidance", 1, 10, 0.5, guidance_scale, change("guidance_scale")),
      ...(strength === null ? [] : [slider("Strength", 0, 1, 0.05, strength, change("strength"))]),
      slider("Volume", 0, 1, 0.05, model.get("volume"), setVolume),
    ];
    const box = (name, ...nodes) => make("div", { class: name }, ...nodes);
    const tools = [box("rl-tools", play, record, keep, retry), box("rl-tools", ...sliders)];
    el.append(canvas, box("rl-progress", progress), now, next, box("rl-ask", prompt, add));
    el.append(box("rl-bar rl-flush", ...tools), status);
  }

  prompt.dataset.testid = "rl-prompt";
  prompt.onkeydown = (event) => event.key === "Enter" && send();
  el.classList.add("rl-widget", "rl-live");
  Object.assign(el, { role: "group", ariaLabel: "Live" });
  el.onkeydown = (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation();
  const observer = new ResizeObserver(() => live.facts && draw());
  observer.observe(el);
  live.views.add(show);
  show();
  return () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
    live.views.delete(show);
    // Whoever runs the cell again does not want to hear the old session as well.
    setTimeout(() => live.views.size || live.state === "ended" || !live.line || live.pause(), 1000);
  };
}

export { crossfade, makeTimeline, pickNext };
export default makeWidget(makeLive, viewLive);
