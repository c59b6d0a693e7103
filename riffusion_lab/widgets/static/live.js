// Music without an end: asks the kernel for clips, joins them on the sample clock, and shows what is heard.

const [POLL_MS, TICK_MS] = [500, 250];
const AWAITING_MS = 100; // from poll to poll while a clip is awaited: the first of all, or that of a new prompt
const BUSY_MS = 4_000; // a kernel that has not answered for this long is said to be busy
const LOST_MS = 60_000; // a poll without an answer for this long is taken for lost, and the next one is sent
const LATE_MS = 1_000; // an action without an answer for this long is said to be on its way
const AHEAD_S = 2; // what comes next is decided this long before it sounds
const SOON_S = 0.1; // what sounds so soon is not changed any more: it may be computed already
const [SPAN_S, NOW] = [8, 0.7]; // seconds on the screen, and where there the present is
const KEPT_S = SPAN_S + 2;
const LONGEST_LABEL = 120; // characters written on the picture

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

// What a loop goes on with behind a place.
function loopFrom(samples, place, length) {
  return Float32Array.from({ length }, (_, i) => samples[(place + i) % samples.length]);
}

// Clips in the order in which they sound, each from one frame of the sample clock to another. Every clip is a loop: it
// may come round again, or be cut at a beat, and what it would have gone on with fades out under the next one.
function makeTimeline(context, output, fade) {
  const rate = context.sampleRate;
  const line = { entries: [], joins: 0, repeats: 0, underruns: 0, jump: 0 };
  let last = null; // the entry behind which the next one begins
  const frameNow = () => Math.ceil(context.currentTime * rate);
  const soon = () => frameNow() + Math.round(Math.max(SOON_S, 2 * (context.baseLatency ?? 0)) * rate);
  const isCut = (entry) => entry.end - entry.begin < entry.clip.samples.length;
  const comesRound = (clip) => last?.clip === clip && !isCut(last); // if it is the next one

  line.left = () => (last ? last.end / rate - context.currentTime : 0);

  function play(samples, frame) {
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = Object.assign(context.createBufferSource(), { buffer });
    source.connect(output);
    source.start(frame / rate);
    return source;
  }

  // The samples of a clip behind the last entry, which fades out under their beginning; out of silence they fade in.
  function joined(clip) {
    if (!last) return crossfade(new Float32Array(fade), clip.samples, fade);
    if (comesRound(clip)) return clip.samples;
    return crossfade(loopFrom(last.clip.samples, last.end - last.begin, fade), clip.samples, fade);
  }

  // Count the join to the last entry, and measure the step from its last sample to the next.
  function count(clip, samples) {
    const join = comesRound(clip) ? "repeats" : "joins";
    line[join]++;
    line.jump = Math.max(line.jump, Math.abs(samples[0] - last.clip.samples[last.end - last.begin - 1]));
    return join;
  }

  line.add = (clip) => {
    const now = frameNow();
    if (last && last.end < now) {
      line.underruns++;
      last = null;
    }
    const begin = last ? last.end : now + Math.round(0.05 * rate);
    const end = begin + clip.samples.length;
    const cut = last && isCut(last) ? (last.end - last.begin) / rate : null; // seconds heard of a clip that was cut
    const samples = joined(clip);
    const join = last ? count(clip, samples) : null;
    last = { clip, begin, end, start: begin / rate, stop: end / rate, cut, join, begun: false };
    last.source = play(samples, begin);
    line.entries.push(last);
  };

  // Take off what does not sound yet, and give back its clips.
  line.takeOff = () => {
    const off = line.entries.filter((entry) => entry.begin > soon());
    line.entries = line.entries.filter((entry) => !off.includes(entry));
    for (const entry of off) {
      entry.source.stop();
      if (entry.join) line[entry.join]--;
    }
    last = line.entries.at(-1) ?? null;
    const clips = new Set(off.map((entry) => entry.clip));
    clips.delete(last?.clip); // it only comes round
    return [...clips];
  };

  // Let the last clip end at its next beat, if it sounds already.
  line.cutAtBeat = () => {
    if (!last || last.begin > soon()) return;
    const earliest = Math.max(soon(), last.begin + fade);
    const end = last.clip.beats.map((beat) => last.begin + beat).find((frame) => frame >= earliest);
    if (end === undefined || end >= last.end) return; // it ends at its end
    Object.assign(last, { end, stop: end / rate });
    last.source.stop((end - 0.25) / rate); // between two frames: no rounding makes it a frame more or less
  };

  // Forget what is over, and tell what has begun to sound since the last call: the numbers of the clips, and how many
  // seconds were heard of the clip before when it last came round, if it was cut.
  line.begun = (time) => {
    line.entries = line.entries.filter((entry) => entry.stop > time - KEPT_S);
    const begun = line.entries.filter((entry) => !entry.begun && entry.start <= time);
    for (const entry of begun) entry.begun = true;
    return begun.map(({ clip, cut }) => ({ number: clip.number, cut_s: cut }));
  };

  line.stop = () => {
    for (const entry of line.entries) entry.source.stop();
    last = null;
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
  const live = {
    state: "ready", // later "waiting" for the first clip, "playing", "paused" or "ended"
    reason: "", // why it was paused or has ended, where the user did neither
    said: "", // what the kernel said about the user's last action
    status: {}, // of the session, as of the last answer
    facts: null, // what does not change: sample rate, settings to begin with
    behind: false, // whether the last clip goes round because the next is not there
    line: null,
    time: 0,
    views: new Set(),
  };
  let context = null;
  let volume = null;
  let [ticking, polling, pollingMs] = [null, null, 0]; // timers, and the time of the second
  let last = null; // the clip that was scheduled last
  let waiting = []; // clips that came and were not scheduled yet
  let have = 0; // the number of the last clip that came
  let begun = []; // what has begun to sound since the kernel was told
  let poll = { number: 0, sentAt: 0, isOpen: false }; // the last one; at most one is on its way
  let silentSince = 0; // when the first poll was sent that has no answer yet
  let actedAt = null; // when an action was sent that has no answer yet
  let recordingError = ""; // the last one that was shown

  live.show = () => live.views.forEach((view) => view());

  // Tell the kernel what the user wants. It answers in words.
  live.act = (message) => {
    live.said = "";
    actedAt = Date.now();
    model.send(message);
    live.show();
    setTimeout(live.show, LATE_MS);
  };

  // The time on the context's clock of what comes out of the loudspeaker now.
  live.now = () => {
    if (context?.state !== "running") return live.time;
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    const behind = context.outputLatency || context.baseLatency || 0;
    const sinceStamp = (performance.now() - performanceTime) / 1000;
    const late = contextTime ? contextTime + sinceStamp : context.currentTime - behind;
    live.time = Math.max(live.time, Math.min(late, context.currentTime));
    return live.time;
  };

  function noteBegun() {
    begun.push(...live.line.begun(live.now()));
  }

  function takeBegun() {
    noteBegun();
    const told = begun;
    begun = [];
    return told;
  }

  // What the end of a recording needs: what has begun, and how many seconds of the clip that sounds were heard.
  live.heardSoFar = () => {
    if (!live.line) return { begun: [], heard_s: null };
    const told = takeBegun();
    const entry = live.line.entries.findLast((each) => each.begun);
    return { begun: told, heard_s: entry ? Math.min(live.now(), entry.stop) - entry.start : null };
  };

  // Ask for clips, unless the kernel still owes an answer: what is sent to a busy kernel piles up there.
  function askForClips() {
    const isLost = Date.now() - poll.sentAt > LOST_MS;
    if (!poll.isOpen || isLost) {
      if (!poll.isOpen) silentSince = Date.now();
      poll = { number: poll.number + 1, sentAt: Date.now(), isOpen: true };
      model.send({ kind: "poll", poll: poll.number, have, begun: takeBegun() });
    }
    live.show();
  }

  function tick() {
    noteBegun();
    if (live.state === "waiting" && waiting.length) live.state = "playing";
    if (live.state !== "playing") return;
    const wanted = live.status.ready ?? [];
    if (waiting.some((clip) => clip.atBeat && clip.number === wanted[0])) makeWay();
    while (live.line.left() < AHEAD_S) scheduleNext(wanted);
    keepPace();
  }

  // The next clip begins at a beat: what was scheduled and does not sound yet is decided again.
  function makeWay() {
    waiting = [...live.line.takeOff(), ...waiting];
    live.line.cutAtBeat();
    scheduleNext(live.status.ready);
  }

  function scheduleNext(wanted) {
    const next = pickNext(waiting, wanted, last);
    live.behind = next.clip === last;
    last = next.clip;
    waiting = next.waiting;
    live.line.add(last);
  }

  // Ask more often while a clip is awaited.
  function keepPace() {
    const ms = live.state === "waiting" || live.status.awaited ? AWAITING_MS : POLL_MS;
    if (!live.isPlaying() || ms === pollingMs) return;
    clearInterval(polling);
    polling = setInterval(askForClips, ms);
    pollingMs = ms;
  }

  live.isPlaying = () => live.state === "playing" || live.state === "waiting";
  live.isBusy = () => live.isPlaying() && poll.isOpen && Date.now() - silentSince > BUSY_MS;
  live.isLost = () => live.isBusy() && Date.now() - silentSince > LOST_MS / 2;
  live.isUnanswered = () => actedAt !== null && Date.now() - actedAt >= LATE_MS;

  // At most one of the page's players sounds: the one that began last.
  function pauseTheOther() {
    const other = globalThis.riffusionLabLive;
    if (other && other !== live && other.isPlaying()) other.pause("another Live on this page began to play");
    globalThis.riffusionLabLive = live;
  }

  live.play = () => {
    if (live.state === "ended" || live.isPlaying()) return;
    pauseTheOther();
    if (!context) {
      context = new AudioContext({ sampleRate: live.facts.sample_rate, latencyHint: "playback" });
      volume = new GainNode(context, { gain: model.get("volume") });
      volume.connect(context.destination);
      live.line = makeTimeline(context, volume, live.facts.fade);
    }
    context.resume(); // at once: only a click or a key may
    live.said = "";
    live.state = last ? "playing" : "waiting";
    ticking = setInterval(tick, TICK_MS);
    keepPace();
    askForClips();
  };

  function halt(state, reason) {
    [ticking, polling].forEach(clearInterval);
    pollingMs = 0;
    live.state = state;
    live.reason = reason;
    live.show();
  }

  live.pause = (reason = "") => {
    live.now(); // where it stays
    context?.suspend();
    live.said = "";
    halt("paused", reason);
  };

  live.end = (reason) => {
    if (context) {
      live.line.stop();
      context.close();
      context = null;
    }
    if (globalThis.riffusionLabLive === live) delete globalThis.riffusionLabLive;
    live.said = "";
    halt("ended", reason);
  };

  async function takeClip(message, samples, picture) {
    if (!samples) {
      live.end(LOST_SOUND);
      return;
    }
    if (message.number <= have) return; // it came twice
    have = message.number;
    const clip = { number: message.number, label: message.label, atBeat: message.at_beat, beats: message.beats };
    clip.samples = Float32Array.from(new Int16Array(samples), (value) => value / 32767);
    waiting.push(clip);
    if (live.isPlaying()) tick();
    clip.picture = await createImageBitmap(new Blob([picture], { type: "image/png" }));
  }

  function takeStatus(status) {
    live.status = status;
    const isNew = status.recording_error !== recordingError;
    recordingError = status.recording_error;
    if (isNew && recordingError) live.said = recordingError;
    keepPace();
  }

  function takeAnswer(text) {
    live.said = text;
    actedAt = null;
  }

  const answers = {
    facts: (message) => {
      live.facts = message;
    },
    status: takeStatus,
    said: ({ text }) => takeAnswer(text),
    refused: ({ text }) => takeAnswer(text),
    clip: (message, samples, picture) => takeClip(message, samples, picture),
    answered: (message) => {
      if (message.poll === poll.number) poll.isOpen = false; // else a late answer to one taken for lost
    },
  };
  const listeners = {
    "msg:custom": async (message, views) => {
      await answers[message.kind]?.(message, ...(views ?? []).map(bytesOf));
      live.show();
    },
    "change:volume": () => volume?.gain.setTargetAtTime(model.get("volume"), volume.context.currentTime, 0.01),
    // The kernel was restarted or has died; the first change says that it lives.
    comm_live_update: () => {
      if (live.facts) live.end("The kernel has ended, and the music with it: run the cell again.");
    },
  };
  const listen = (onOrOff) => Object.entries(listeners).forEach(([event, call]) => model[onOrOff](event, call));
  live.close = () => {
    listen("off");
    live.end("");
  };
  listen("on");
  return live;
}

// What goes on.
function stateText(live) {
  const { error = "", stopped = false } = live.status;
  if (live.state === "ended") return live.reason;
  if (stopped) return "The session was stopped in the kernel: run the cell again.";
  if (error) {
    const meanwhile = live.line?.entries.length ? "The last one goes round" : "Nothing plays yet";
    return `No new clip could be made (${error}). ${meanwhile}; “Try again”, or another prompt.`;
  }
  if (live.state === "paused" && live.reason) return `Paused: ${live.reason}.`;
  if (live.state === "paused") return "Paused. New prompts and settings wait until you press Play.";
  if (live.isLost()) return "The kernel does not answer. If it was restarted, run the cell again.";
  if (live.isBusy() && live.state === "waiting") return "The kernel is busy: the music begins when it answers.";
  if (live.isBusy()) return "The kernel is busy: the last clip goes round until it answers.";
  if (live.state === "playing" && live.behind) return "Falling behind: the last clip goes round until the next is made.";
  if (live.state === "waiting") return "Making the first clip …";
  return "";
}

// What was said about the user's last action, until the next one.
function saidText(live) {
  if (live.said) return live.said;
  if (live.isUnanswered()) return "Sent. The kernel has not answered yet.";
  return (live.status.hints ?? []).join(" ");
}

// The beginning of a text that is at most `width` pixels wide.
function cutText(pen, text, width) {
  const letters = [...text.slice(0, LONGEST_LABEL)];
  if (letters.length === [...text].length && pen.measureText(text).width <= width) return text;
  while (letters.length && pen.measureText(`${letters.join("")}…`).width > width) letters.pop();
  return letters.length ? `${letters.join("")}…` : "";
}

function makeSlider({ label, least, most, step, value, onChange }) {
  const range = { type: "range", min: least, max: most, step, value, "aria-label": label };
  const input = make("input", { ...range, "data-testid": `rl-${label.toLowerCase()}` });
  const shown = make("output", { class: "rl-time" }, String(value));
  input.addEventListener("input", () => {
    shown.textContent = input.value;
  });
  input.addEventListener("change", () => onChange(Number(input.value)));
  return make("label", {}, label, input, shown);
}

function viewLive(live, el, model) {
  const canvas = make("canvas", { class: "rl-strip", role: "img", "data-testid": "rl-strip" });
  const prompt = make("input", {
    type: "text",
    "aria-label": "Prompt",
    placeholder: "What next?",
    "data-testid": "rl-prompt",
  });
  const line = (name, attributes) => make("div", { "data-testid": `rl-${name}`, ...attributes });
  const [now, next, progress] = [line("now"), line("next"), line("progress")];
  const spoken = { class: "rl-dim", role: "status", "aria-live": "polite" };
  const [status, said] = [line("status", spoken), line("said", spoken)];
  const play = makeButton("play", "Play", () => (live.isPlaying() ? live.pause() : live.play()));
  const add = makeButton("add", "Add", send, "Add the prompt");
  const record = makeButton("record", "Record", switchRecording, "Record what is heard to a file");
  const keepRecipe = () => live.act({ kind: "keep" });
  const keep = makeButton("keep", "Keep recipe", keepRecipe, "Save what plays the session again");
  const retry = makeButton("retry", "Try again", () => live.act({ kind: "retry" }));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frame = 0; // the request for the next one
  let drawnAt = 0;

  function send() {
    live.act({ kind: "prompt", text: prompt.value });
    prompt.select(); // a refused one can be mended
  }

  function switchRecording() {
    live.act(live.status.recording ? { kind: "record", on: false, ...live.heardSoFar() } : { kind: "record", on: true });
  }

  function drawEntry(pen, entry, x, width, height) {
    const { clip } = entry;
    const heard = (entry.end - entry.begin) / clip.samples.length; // of a clip that is cut, a part
    const { picture } = clip;
    if (picture) pen.drawImage(picture, 0, 0, heard * picture.width, picture.height, x, 0, width + 0.5, height);
    pen.fillRect(x, 0, 1, 20);
    if (entry.labelWidth !== width) {
      entry.labelWidth = width;
      entry.label = cutText(pen, clip.label, width - 10); // takes too long to do it in every frame
    }
    pen.strokeText(entry.label, x + 5, 14);
    pen.fillText(entry.label, x + 5, 14);
  }

  function draw() {
    const { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    const pen = canvas.getContext("2d");
    const time = live.now();
    const pixelsPerS = width / SPAN_S;
    pen.scale(devicePixelRatio, devicePixelRatio);
    pen.fillRect(0, 0, width, height);
    Object.assign(pen, { font: "12px sans-serif", fillStyle: "#fff", lineWidth: 3 });
    for (const entry of live.line?.entries ?? []) {
      const x = NOW * width + (entry.start - time) * pixelsPerS;
      drawEntry(pen, entry, x, (entry.stop - entry.start) * pixelsPerS, height);
    }
    pen.fillRect(NOW * width - 1, 0, 2, height);
  }

  function animate(at) {
    const goesOn = live.state === "playing" && el.isConnected;
    frame = goesOn ? requestAnimationFrame(animate) : 0;
    if (still && goesOn && at - drawnAt <= 1000) return;
    drawnAt = at;
    draw();
  }

  // Text of one line; what does not fit is cut by the style sheet, and shown by the pointer.
  function showLine(node, text) {
    node.textContent = text;
    node.title = text;
  }

  function showRetry(isNeeded) {
    if (!isNeeded && document.activeElement === retry) play.focus(); // what is hidden has no focus
    retry.style.visibility = isNeeded ? "visible" : "hidden"; // its place stays
  }

  function show() {
    if (!live.facts) return;
    if (!el.dataset.state) addControls();
    const time = live.now();
    const entry = live.line?.entries.findLast((each) => each.start <= time);
    const { number: clip = 0, label = "" } = entry?.clip ?? {};
    showLine(now, entry ? `Now: ${label}` : "");
    showLine(next, live.status.queue?.length ? `Then: ${live.status.queue.join(" · ")}` : "");
    progress.style.width = `${100 * (live.status.progress ?? 0)}%`;
    setText(status, stateText(live));
    setText(said, saidText(live));
    play.textContent = live.isPlaying() ? "Pause" : "Play";
    play.ariaLabel = play.title = play.textContent;
    record.textContent = live.status.recording ? "Stop recording" : "Record";
    record.ariaPressed = String(Boolean(live.status.recording));
    showRetry(Boolean(live.status.error));
    for (const node of el.querySelectorAll("button, input")) node.disabled = live.state === "ended";
    canvas.setAttribute("aria-label", `Spectrogram of the last seconds. ${now.textContent}`);
    const { joins = 0, repeats = 0, underruns = 0, jump = 0 } = live.line ?? {};
    const began = (entry?.start ?? 0).toFixed(3); // when what is heard did, on the clock of ctxTime
    const seen = { state: live.state, behind: live.behind, ctxTime: time.toFixed(3), clip, label, began };
    Object.assign(el.dataset, seen, { joins, repeats, underruns, jump: jump.toFixed(5) });
    if (live.state === "playing") frame ||= requestAnimationFrame(animate);
    else draw();
  }

  function addControls() {
    const { guidance_scale, strength } = live.facts;
    const change = (name) => (value) => live.act({ kind: "change", [name]: value });
    const guidance = { label: "Guidance", least: 1, most: 10, step: 0.5, value: guidance_scale };
    const sliders = [makeSlider({ ...guidance, onChange: change("guidance_scale") })];
    if (strength !== null) {
      const range = { label: "Strength", least: 0, most: 1, step: 0.05, value: strength };
      sliders.push(makeSlider({ ...range, onChange: change("strength") }));
    }
    const setVolume = (value) => {
      model.set("volume", value);
      model.save_changes();
    };
    const volume = { label: "Volume", least: 0, most: 1, step: 0.05, value: model.get("volume") };
    sliders.push(makeSlider({ ...volume, onChange: setVolume }));
    const box = (name, ...nodes) => make("div", { class: name }, ...nodes);
    const tools = [box("rl-tools", play, record, keep, retry), box("rl-tools", ...sliders)];
    el.append(canvas, box("rl-progress", progress), now, next, box("rl-ask", prompt, add));
    el.append(box("rl-bar rl-flush", ...tools), status, said);
  }

  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) send(); // composing: Enter picks a character
  });
  el.classList.add("rl-widget", "rl-live");
  Object.assign(el, { role: "group", ariaLabel: "Live" });
  keepPlainKeys(el);
  const observer = new ResizeObserver(() => {
    if (live.facts) draw();
  });
  observer.observe(el);
  live.views.add(show);
  show();
  return () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
    live.views.delete(show);
    // Whoever runs the cell again does not want to hear the old session as well.
    setTimeout(() => {
      if (!live.views.size && live.isPlaying()) live.pause();
    }, 1000);
  };
}

export { crossfade, loopFrom, makeLive, makeTimeline, pickNext };
export default makeWidget(makeLive, viewLive);
