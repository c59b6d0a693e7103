// The endless player without its looks: asks the kernel for clips, schedules them, and keeps what the user did until
// the kernel has answered. Python puts this text before that of the player.

const [POLL_MS, TICK_MS] = [500, 250];
const AWAITING_MS = 100; // from poll to poll while a clip is awaited: the first of all, or that of a new prompt
const BUSY_MS = 4_000; // a kernel that has not answered for this long is said to be busy or gone
const NO_ANSWER_MS = 12_000; // for this long: what to do if it is gone
const LOST_MS = 60_000; // a poll without an answer for this long is taken for lost, and the next one is sent
const LATE_MS = 1_000; // an action without an answer for this long is said to be on its way
const TWICE_MS = 600; // the same prompt again within this time is a double click
const AHEAD_S = 2; // what comes next is decided this long before it sounds
const LONGEST_LABEL = 120; // characters written on the picture

const LOST_SOUND =
  "This front end drops the bytes of sounds, so Live cannot play here. It plays in JupyterLab; " +
  "in any notebook riffusion_lab.widgets.Session makes the same clips, to be shown one by one.";

// Which clip comes next: the first that is wanted, else one made for a prompt that has changed, else the last again.
function pickNext(waiting, wanted, last) {
  const next = waiting.find((clip) => wanted.includes(clip.number)) ?? waiting[0];
  return next ? { clip: next, waiting: waiting.filter((clip) => clip.number > next.number) } : { clip: last, waiting };
}

// How many samples of a clip are still to be heard in a replay, this time round; 0: none.
function samplesLeft(clip) {
  if (!clip?.timesLeft || clip.timesLeft < 1e-6) return 0;
  return Math.round(Math.min(1, clip.timesLeft) * clip.samples.length);
}

const toFloats = (samples) => Float32Array.from(new Int16Array(samples), (value) => value / 32767);
const toPicture = (bytes) => createImageBitmap(new Blob([bytes], { type: "image/png" }));

// What the user has asked for, until the kernel has answered: each action has a number.
function makeActions(live, send) {
  let number = 0;
  live.pending = new Map(); // number → message, when it was sent, what is said meanwhile
  live.sent = []; // prompts that the kernel does not list yet
  live.said = { text: "", isError: false }; // about the last action that was answered

  // Tell the kernel what the user wants. It answers in words; until then the page says `words`.
  live.act = (message, words = "Sent.") => {
    const action = ++number;
    if (!live.said.isError) live.said = { text: "", isError: false };
    live.pending.set(action, { message, words, sentAt: Date.now() });
    send({ ...message, action });
    live.show();
    setTimeout(live.show, LATE_MS);
  };

  live.fail = (text) => {
    live.said = { text, isError: true };
    live.show();
  };

  live.dismiss = () => {
    live.said = { text: "", isError: false };
    live.show();
  };

  live.addPrompt = (text, tempo_bpm = null) => {
    const shown = text.trim();
    if (!shown) {
      live.fail("The box is empty: describe a sound, such as “solo piano, slow”.");
      return;
    }
    const before = live.sent.findLast((each) => each.text === shown);
    if (before && Date.now() - before.sentAt < TWICE_MS) return; // a double click
    const facts = { action: number + 1, text: shown, sentAt: Date.now(), number: null };
    live.sent.push({ ...facts, isAnswered: false, isUnwanted: false });
    const tempo = tempo_bpm === null ? {} : { tempo_bpm };
    live.act({ kind: "prompt", text, ...tempo }, "Prompt sent.");
  };

  // Take a prompt out of the queue; one that the kernel does not know yet, once it does.
  live.removePrompt = (chip) => {
    if (chip.number !== null) live.act({ kind: "remove", number: chip.number }, `Taking “${chip.text.slice(0, 40)}” out.`);
    const sent = live.sent.find((each) => each.action === chip.action);
    if (sent) sent.isUnwanted = true;
    live.show();
  };

  live.movePrompt = (number, place) => {
    live.act({ kind: "move", number, place }, "Moving the prompt.");
  };

  live.takeAnswer = ({ action, text, ...more }, isError) => {
    live.pending.delete(action);
    live.said = { text, isError };
    if (more.file) live.file = more.file;
    if (more.code) live.code = more.code;
    const sent = live.sent.find((each) => each.action === action);
    if (isError) live.sent = live.sent.filter((each) => each !== sent);
    else if (sent) Object.assign(sent, { isAnswered: true, number: more.number ?? null });
    if (!isError && sent?.isUnwanted) live.act({ kind: "remove", number: more.number }, "Taking it out.");
  };

  // The status that follows an answer lists the prompt.
  live.forgetListed = () => {
    live.sent = live.sent.filter((each) => !each.isAnswered);
  };

  const pendingOf = (kind) => [...live.pending.values()].map(({ message }) => message).filter((m) => m.kind === kind);
  live.isPending = (kind) => pendingOf(kind).length > 0;
  live.isUnanswered = () => [...live.pending.values()].some(({ sentAt }) => Date.now() - sentAt >= LATE_MS);
  live.oldestSentAt = () => Math.min(...[...live.pending.values()].map(({ sentAt }) => sentAt));

  // The prompts that wait, as the user wants them to be: first as the kernel lists them, changed by what was sent.
  live.chips = () => {
    let listed = (live.status.waiting ?? []).map((each) => ({ ...each, action: null }));
    for (const { number, place } of pendingOf("move")) {
      const chip = listed.find((each) => each.number === number);
      if (!chip) continue;
      listed = listed.filter((each) => each !== chip);
      listed.splice(place, 0, chip);
    }
    const leaving = new Set(pendingOf("remove").map((message) => message.number));
    const known = listed.map((each) => ({
      ...each,
      key: `number ${each.number}`,
      state: leaving.has(each.number) ? "leaving" : each.state,
      seconds: secondsTo(live, each),
      progress: each.state === "making" ? (live.status.progress ?? 0) : 0,
    }));
    const sent = live.sent.map(({ text, action, isUnwanted }) => {
      const state = isUnwanted ? "leaving" : "sent";
      return { key: `action ${action}`, action, number: null, text, state, seconds: null, progress: 0 };
    });
    return [...known, ...sent, ...(known.length ? [] : goingOn())];
  };

  // What comes while no prompt waits: the first prompt, or other takes of the one that is heard.
  function goingOn() {
    if (!live.facts || live.state === "ended") return [];
    const { progress = 0, holding = false } = live.status;
    const isFirst = !live.line?.entries.some(({ clip }) => !clip.isIntro);
    const text = isFirst ? live.facts.prompt : holding ? "this clip again" : "another take of it";
    const idle = holding ? "held" : isFirst ? "first" : "made";
    const state = progress > 0 || (isFirst && live.state === "waiting") ? "making" : idle;
    return [{ key: "going on", isFixed: true, action: null, number: null, text, state, seconds: null, progress }];
  }
}

// A file that the kernel offers, fetched part by part: `live.file` gets an address.
function makeDownload(live, send) {
  let parts = [];
  let got = 0;
  live.file = null; // {name, bytes}, later with `url`, or with `share` while it comes

  const ask = () => send({ kind: "download", name: live.file.name, start: got });

  live.download = () => {
    if (!live.file || live.file.url || live.file.share !== undefined) return;
    [parts, got] = [[], 0];
    live.file.share = 0;
    ask();
    live.show();
  };

  live.takePart = ({ name, start }, bytes) => {
    if (name !== live.file?.name || start !== got) return;
    if (!bytes) {
      live.file = null;
      live.fail(`This front end drops the bytes of files: ${name} is in the folder of the kernel.`);
      return;
    }
    parts.push(bytes);
    got += bytes.byteLength;
    live.file.share = live.file.bytes ? got / live.file.bytes : 1;
    if (got >= live.file.bytes || !bytes.byteLength) live.file.url = URL.createObjectURL(new Blob(parts));
    else ask();
  };
}

function makeLive(model) {
  const live = {
    id: `${Math.random()}`, // of this window, among those that show this widget
    state: "loading", // then "ready", "waiting" for the first clip, "playing", "paused" or "ended"
    reason: "", // why it was paused or has ended, where the user did neither
    status: {}, // of the session, as of the last answer
    facts: null, // what does not change: sample rate, settings to begin with
    intro: null, // the seed clip that sounds until the first clip is made
    hasLostSound: false, // whether this front end drops the bytes of messages
    isPressed: false, // Play, before the kernel has answered for the first time
    behind: false, // whether the last clip goes round because the next is not there
    recordsFrom: null, // when the first clip of a recording began, on the context's clock
    code: "",
    line: null,
    meter: null,
    time: 0,
    views: new Set(),
  };
  const madeAt = Date.now();
  let context = null;
  let volume = null;
  let [ticking, polling, pollingMs] = [null, null, 0]; // timers, and the time of the second
  let last = null; // the clip that was scheduled last
  let waiting = []; // clips that came and were not scheduled yet
  let have = 0; // the number of the last clip that came
  let begun = []; // what has begun to sound since the kernel was told
  let poll = { number: 0, sentAt: 0, isOpen: false }; // the last one; at most one is on its way
  let silentSince = 0; // when the first poll was sent that has no answer yet
  let starts = false; // whether the kernel is still to be told that this window plays now
  let recordingError = ""; // the last one that was shown

  const send = (message) => model.send({ ...message, listener: live.id });
  live.show = () => live.views.forEach((view) => view());
  makeActions(live, send);
  makeDownload(live, send);

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

  // The entry of the timeline that comes out of the loudspeaker now.
  live.sounding = () => {
    const time = live.now();
    return live.line?.entries.findLast((entry) => entry.start <= time);
  };

  function noteBegun() {
    const told = live.line.begun(live.now());
    begun.push(...told);
    if (live.status.recording && live.recordsFrom === null && told.length) live.recordsFrom = live.sounding().start;
  }

  function takeBegun() {
    if (live.line) noteBegun();
    const told = begun;
    begun = [];
    return told;
  }

  // What the end of a recording needs: what has begun, and how many seconds of the clip that sounds were heard.
  live.heardSoFar = () => {
    if (!live.line) return { begun: [], heard_s: null };
    const told = takeBegun();
    const entry = live.line.entries.findLast((each) => each.begun);
    const isClip = entry && !entry.clip.isIntro;
    return { begun: told, heard_s: isClip ? Math.min(live.now(), entry.stop) - entry.start : null };
  };

  // Ask for clips, unless the kernel still owes an answer: what is sent to a busy kernel piles up there.
  function askForClips() {
    const isLost = Date.now() - poll.sentAt > LOST_MS;
    if (!poll.isOpen || isLost) {
      if (!poll.isOpen) silentSince = Date.now();
      poll = { number: poll.number + 1, sentAt: Date.now(), isOpen: true };
      send({ kind: "poll", poll: poll.number, have, begun: takeBegun(), ...(starts ? { starts } : {}) });
    }
    live.show();
  }

  function tick() {
    noteBegun();
    if (live.state === "waiting" && waiting.length) live.state = "playing";
    else if (live.state === "waiting") playIntro();
    if (live.state !== "playing") return;
    const wanted = live.status.ready ?? [];
    if (last?.isIntro || waiting.some((clip) => clip.atBeat && clip.number === wanted[0])) makeWay();
    while (live.line.left() < AHEAD_S) scheduleNext(wanted);
    keepPace();
  }

  // The seed clip goes round until the first clip is there.
  function playIntro() {
    if (!live.intro) return;
    last = live.intro;
    while (live.line.left() < AHEAD_S) live.line.add(live.intro);
  }

  // The next clip begins at a beat: what was scheduled and does not sound yet is decided again.
  function makeWay() {
    waiting = [...live.line.takeOff().filter((clip) => !clip.isIntro), ...waiting];
    live.line.cutAtBeat();
    if (last) delete last.timesLeft;
    scheduleNext(live.status.ready ?? []);
  }

  function scheduleNext(wanted) {
    const length = samplesLeft(last);
    if (length) {
      last.timesLeft -= 1; // in a replay it came round, or was cut, here too
      live.line.add(last, length);
      return;
    }
    const next = pickNext(waiting, wanted, last);
    live.behind = next.clip === last;
    last = next.clip;
    waiting = next.waiting;
    if (last.times !== undefined && !live.behind) {
      const heard = Math.round(Math.min(1, last.times) * last.samples.length);
      last.timesLeft = last.times - 1;
      live.line.add(last, Math.max(1, heard));
    } else live.line.add(last);
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

  // How long the kernel has owed an answer to anything: the greeting, a poll, an action.
  live.silentMs = () => {
    if (live.state === "ended") return 0;
    const owed = [];
    if (!live.facts) owed.push(madeAt);
    if (live.isPlaying() && poll.isOpen) owed.push(silentSince);
    if (live.pending.size) owed.push(live.oldestSentAt());
    return owed.length ? Date.now() - Math.min(...owed) : 0;
  };
  live.isBusy = () => live.silentMs() > BUSY_MS;
  live.isLost = () => live.silentMs() > NO_ANSWER_MS;

  // At most one of the page's players sounds: the one that began last.
  function pauseTheOther() {
    const other = globalThis.riffusionLabLive;
    if (other && other !== live && other.isPlaying()) other.pause("another Live on this page began to play");
    globalThis.riffusionLabLive = live;
  }

  function openContext() {
    context = new AudioContext({ sampleRate: live.facts.sample_rate, latencyHint: "playback" });
    volume = new GainNode(context, { gain: model.get("volume") });
    volume.connect(context.destination);
    live.meter = context.createAnalyser?.() ?? null;
    if (live.meter) volume.connect(live.meter);
    live.line = makeTimeline(context, volume, live.facts.fade);
  }

  live.play = () => {
    if (live.state === "ended" || live.isPlaying()) return;
    if (live.hasLostSound) {
      live.end(LOST_SOUND);
      return;
    }
    if (!live.facts) {
      live.isPressed = !live.isPressed;
      live.show();
      return;
    }
    pauseTheOther();
    if (!context) openContext();
    context.resume(); // at once: only a click or a key may
    live.reason = "";
    starts = true;
    live.state = last && !last.isIntro ? "playing" : "waiting";
    ticking = setInterval(tick, TICK_MS);
    keepPace();
    askForClips();
    tick();
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
    halt("paused", reason);
  };

  live.end = (reason) => {
    if (context) {
      live.line.stop();
      context.close();
      context = null;
    }
    if (globalThis.riffusionLabLive === live) delete globalThis.riffusionLabLive;
    live.pending.clear();
    live.sent = [];
    live.said = { text: "", isError: false };
    halt("ended", reason);
  };

  async function takeFacts(message, samples, picture) {
    if (live.facts) return;
    live.facts = addScale(message);
    live.state = "ready";
    live.hasLostSound = Boolean(message.intro) && !samples;
    if (message.intro && samples) {
      live.intro = { number: 0, isIntro: true, ...message.intro, samples: toFloats(samples) };
      live.intro.label = message.intro.label;
    }
    live.facts.clip_s = live.intro ? live.intro.samples.length / message.sample_rate : 5.12;
    if (live.isPressed) live.play();
    if (live.intro) live.intro.picture = await toPicture(picture);
  }

  async function takeClip(message, samples, picture) {
    if (!samples) {
      live.end(LOST_SOUND);
      return;
    }
    if (message.number <= have) return; // it came twice
    have = message.number;
    const { number, label, beats, times } = message;
    const clip = { number, label, atBeat: message.at_beat, beats, times, samples: toFloats(samples) };
    live.facts.clip_s = clip.samples.length / live.facts.sample_rate;
    waiting.push(clip);
    if (live.isPlaying()) tick();
    clip.picture = await toPicture(picture);
  }

  function takeStatus(status) {
    if (status.recording !== live.status.recording) live.recordsFrom = null;
    live.status = status;
    live.forgetListed();
    const isNew = status.recording_error !== recordingError;
    recordingError = status.recording_error;
    if (isNew && recordingError) live.said = { text: recordingError, isError: true };
    keepPace();
  }

  function takeAnswered(message) {
    if (message.poll !== poll.number) return; // a late answer to one taken for lost
    poll.isOpen = false;
    starts = false;
  }

  const answers = {
    facts: takeFacts,
    status: takeStatus,
    said: (message) => live.takeAnswer(message, false),
    refused: (message) => live.takeAnswer(message, true),
    clip: takeClip,
    part: (message, bytes) => live.takePart(message, bytes),
    halted: ({ text }) => {
      if (live.isPlaying()) live.pause(text);
    },
    answered: takeAnswered,
  };
  const listeners = {
    "msg:custom": async (message, views) => {
      if (message.listener && message.listener !== live.id) return; // it is for another window
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
  const watching = setInterval(() => {
    if (!live.isPlaying() && live.silentMs() > BUSY_MS) live.show(); // while it plays, polls do that
  }, 1000);
  live.close = () => {
    clearInterval(watching);
    listen("off");
    live.end("");
  };
  listen("on");
  return live;
}
