// The endless player's joins and its talk with the kernel, without a browser: `node --test`, with the widget's text in the file LIVE_MODULE names.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { pathToFileURL } from "node:url";

const module = await import(pathToFileURL(process.env.LIVE_MODULE));
const { chipText, crossfade, loopFrom, makeLive, makeTimeline, pickNext, saidText, stateText } = module;
const RATE = 44100;
const FADE = 1323;

function sine(cycles, length = RATE) {
  return Float32Array.from({ length }, (_, i) => 0.5 * Math.sin((2 * Math.PI * cycles * i) / length));
}

const power = (samples) => samples.reduce((sum, value) => sum + value * value, 0) / samples.length;

// An AudioContext that writes down what would be heard.
function fakeContext(seconds) {
  const heard = new Float32Array(seconds * RATE);
  const context = { sampleRate: RATE, currentTime: 0, heard, stopped: 0 };
  context.createBuffer = (channels, length) => {
    const data = new Float32Array(length);
    return { data, copyToChannel: (samples) => data.set(samples) };
  };
  context.createBufferSource = () => ({
    connect() {},
    start(time) {
      const frame = time * RATE;
      assert.ok(Math.abs(frame - Math.round(frame)) < 1e-6, `${frame} is no whole frame`);
      this.frame = Math.round(frame);
      this.buffer.data.forEach((value, i) => (heard[this.frame + i] += value));
    },
    // A frame sounds if its time is before that of the stop, and not over
    stop(time = 0) {
      context.stopped++;
      const first = Math.max(0, Math.ceil(Math.max(time, context.currentTime) * RATE - 1e-6) - this.frame);
      this.buffer.data.subarray(first).forEach((value, i) => (heard[this.frame + first + i] -= value));
    },
  });
  return context;
}

test("a crossfade of unlike sounds keeps their power, and leaves the rest as it is", () => {
  const [tail, sound] = [sine(440), sine(661)];
  const joined = crossfade(tail, sound, FADE);
  assert.ok(Math.abs(power(joined.subarray(0, FADE)) / power(sound) - 1) < 0.15);
  assert.deepEqual(joined.subarray(FADE), sound.subarray(FADE));
  assert.equal(joined[0], tail[0]);
});

test("a crossfade of a sound with itself changes nothing", () => {
  const sound = sine(440);
  crossfade(sound, sound, FADE).forEach((value, i) => assert.ok(Math.abs(value - sound[i]) < 1e-6));
});

test("a crossfade from or to silence has no bad sample", () => {
  const [silence, sound] = [new Float32Array(RATE), sine(440)];
  for (const joined of [crossfade(silence, sound, FADE), crossfade(sound, silence, FADE), crossfade(silence, silence, FADE)]) {
    assert.ok(joined.every(Number.isFinite));
  }
});

test("clips join on whole frames, without a gap, and a loop goes round exactly", () => {
  const context = fakeContext(6);
  const line = makeTimeline(context, null, FADE);
  const [a, b] = [{ number: 1, samples: sine(440) }, { number: 2, samples: sine(661) }];
  for (const clip of [a, a, b]) line.add(clip);
  const first = Math.round(0.05 * RATE);
  const wanted = [...crossfade(new Float32Array(FADE), a.samples, FADE), ...a.samples, ...crossfade(a.samples, b.samples, FADE)];
  wanted.forEach((value, i) => assert.equal(context.heard[first + i], Math.fround(value), `sample ${i}`));
  assert.deepEqual([line.joins, line.repeats, line.underruns], [1, 1, 0]);
  assert.ok(line.jump < 0.5 * 2 * Math.PI * (661 / RATE));
  assert.ok(Math.abs(line.left() - 3.05) < 1e-9);
});

test("what begins is told once, and what is long over is forgotten", () => {
  const context = fakeContext(60);
  const line = makeTimeline(context, null, FADE);
  for (let number = 1; number <= 40; number++) line.add({ number, samples: sine(440) });
  assert.deepEqual(line.begun(0), []);
  assert.deepEqual(line.begun(1.2), [1, 2].map((number) => ({ number, cut_s: null })));
  assert.deepEqual(line.begun(1.2), []);
  line.begun(30.5);
  assert.equal(line.entries[0].clip.number, 21); // ends at 21.05 s; the screen shows the last 8
});

test("too late is counted, and goes on after a moment of silence", () => {
  const context = fakeContext(9);
  const line = makeTimeline(context, null, FADE);
  line.add({ number: 1, samples: sine(440) });
  context.currentTime = 3;
  line.add({ number: 2, samples: sine(661) });
  assert.equal(line.underruns, 1);
  assert.equal(line.entries[1].start, 3.05);
  assert.equal(context.heard[Math.round(3.05 * RATE)], 0); // it fades in
  line.stop();
  assert.equal(context.stopped, 2);
});

// Two clips of a second and their beats; the first one sounds from frame 2205 on, and is cut at the beat after `seconds`.
function cutAfter(seconds, { beats = [11025, 22050, 33075] } = {}) {
  const context = fakeContext(6);
  const line = makeTimeline(context, null, FADE);
  const [a, b] = [{ number: 1, samples: sine(441), beats }, { number: 2, samples: sine(661), beats: [] }];
  line.add(a); // at its middle it is upside down: what it goes on with there is not its beginning
  context.currentTime = seconds;
  line.cutAtBeat();
  line.add(b);
  return { context, line, a, b };
}

test("a clip that joins at a beat begins there to the frame, over what the loop would have gone on with", () => {
  const { context, line, a, b } = cutAfter(0.4);
  const end = 22050; // 0.4 s is frame 15435 of the clip, and the beat before lies within the next tenth of a second
  const wanted = crossfade(new Float32Array(FADE), a.samples, FADE).subarray(0, end);
  const next = crossfade(loopFrom(a.samples, end, FADE), b.samples, FADE);
  [...wanted, ...next].forEach((value, i) => {
    assert.ok(Math.abs(context.heard[2205 + i] - value) < 1e-6, `sample ${i}`);
  });
  assert.ok(!context.heard.subarray(2205 + end + RATE).some((value) => value));
  assert.deepEqual([line.entries[0].end, line.entries[1].begin], [2205 + end, 2205 + end]);
  assert.deepEqual([line.joins, line.repeats, line.underruns], [1, 0, 0]);
  assert.ok(line.jump < 0.5 * 2 * Math.PI * (661 / RATE));
});

test("where a clip joins at a beat, the level stays", () => {
  const { context, a } = cutAfter(0.4);
  const around = context.heard.subarray(2205 + 22050 - FADE, 2205 + 22050 + 2 * FADE);
  for (let i = 0; i < 3; i++) {
    const part = around.subarray(i * FADE, (i + 1) * FADE);
    assert.ok(Math.abs(power(part) / power(a.samples) - 1) < 0.15, `part ${i}`);
  }
});

test("the beat to join at is at least a tenth of a second ahead, and behind the last one comes the end", () => {
  const place = (seconds, options) => cutAfter(seconds, options).line.entries[1].begin - 2205;
  assert.equal(place(0.19), 11025); // its beat is at 0.3 s
  assert.equal(place(0.21), 22050);
  assert.equal(place(0.69), 33075);
  assert.equal(place(0.71), RATE);
  assert.equal(place(1.04), RATE);
  assert.equal(place(0.5, { beats: [] }), RATE);
  assert.deepEqual(cutAfter(0.71).line.begun(9).map((told) => told.cut_s), [null, null]);
});

test("a clip is not cut within the fade of its beginning", () => {
  const context = fakeContext(4);
  const line = makeTimeline(context, null, FADE);
  const clips = [440, 661, 550].map((cycles, i) => ({ number: i, samples: sine(cycles), beats: [500, 30000] }));
  for (const clip of clips.slice(0, 2)) line.add(clip);
  context.currentTime = 0.955; // the second begins in 0.095 s, and its first beat is 0.011 s behind
  line.cutAtBeat();
  line.add(clips[2]);
  assert.equal(line.entries[2].begin - line.entries[1].begin, 30000);
});

test("a clip that was cut is told once, with the seconds of it that were heard", () => {
  const { line } = cutAfter(0.4);
  assert.deepEqual(line.begun(0.5), [{ number: 1, cut_s: null }]);
  assert.deepEqual(line.begun(0.56), [{ number: 2, cut_s: 0.5 }]);
  assert.deepEqual(line.begun(3), []);
});

test("clips that do not sound yet are taken off, come back, and are not heard", () => {
  const context = fakeContext(9);
  const line = makeTimeline(context, null, FADE);
  const [a, b, c] = [440, 661, 550].map((cycles, i) => ({ number: i + 1, samples: sine(cycles), beats: [22050] }));
  for (const clip of [a, a, b, b, c]) line.add(clip);
  context.currentTime = 0.4;
  assert.deepEqual(line.takeOff(), [b, c]); // a has begun, and would only have come round
  assert.deepEqual([line.joins, line.repeats, line.entries.length], [0, 0, 1]);
  assert.ok(!context.heard.subarray(2205 + RATE).some((value) => value));
  line.add(c);
  assert.equal(line.entries[1].begin, 2205 + RATE);
  assert.deepEqual(line.begun(1.5).map(({ number }) => number), [1, 3]);
  context.currentTime = 1.0; // c begins in 0.05 s: it is too late
  assert.deepEqual(line.takeOff(), []);
});

test("the next clip is the first wanted one, else one of before, else the last again", () => {
  const [last, old, fresh, later] = [1, 2, 3, 4].map((number) => ({ number }));
  assert.deepEqual(pickNext([old, fresh, later], [3, 4], last), { clip: fresh, waiting: [later] });
  assert.deepEqual(pickNext([old], [], last), { clip: old, waiting: [] });
  assert.deepEqual(pickNext([], [], last), { clip: last, waiting: [] });
});

// A kernel that answers polls with the clips asked for, at once or, while it is busy, later; and a clock that is put
// forward by hand.
function fakeKernel({ intro = false, loses = false } = {}) {
  const kernel = { isBusy: false, sent: [], made: 0, queue: [], sentClips: [], nAwaited: 0, atBeat: 0, times: {} };
  Object.assign(kernel, { nAdded: 0, waiting: [], recording: "", fixed: null, begun: 0 });
  const handlers = {};
  const emit = (content, ...buffers) => handlers["msg:custom"](content, buffers.map((buffer) => new DataView(buffer)));
  const answer = {
    ready: () => {
      const facts = { kind: "facts", sample_rate: RATE, fade: FADE, guidance_scale: 4, strength: null, prompt: "piano" };
      facts.half_band_hz = [0, 5_000, 10_000];
      if (!intro) return emit(facts);
      const beats = Array.from({ length: 7 }, (_, i) => (5512 * (i + 1)) | 0);
      const sound = new Int16Array(44100).map((_, i) => 9000 * Math.sin((2 * Math.PI * 440 * i) / RATE));
      const buffers = loses ? [] : [sound.buffer, new ArrayBuffer(1)];
      emit({ ...facts, intro: { label: "the seed clip", beats } }, ...buffers);
    },
    poll: ({ poll, have, begun }) => {
      kernel.begun = Math.max(kernel.begun, ...begun.map(({ number }) => number));
      if (kernel.nAwaited && !--kernel.nAwaited) kernel.atBeat = kernel.made + 1; // it is made now
      if (!kernel.nAwaited) kernel.made = Math.max(kernel.made, ...begun.map(({ number }) => number), 0) + 2;
      const made = kernel.fixed ?? [kernel.made - 1, kernel.made];
      const ready = kernel.nAwaited ? [] : made.filter((number) => !kernel.fixed || number > kernel.begun);
      sayStatus(ready);
      for (const number of ready.filter((each) => each > have)) {
        kernel.sentClips.push(number);
        const clip = { kind: "clip", number, label: "piano", at_beat: number === kernel.atBeat, beats: [22050] };
        if (kernel.times[number]) clip.times = kernel.times[number];
        emit(clip, new Int16Array(RATE).fill(100).buffer, new ArrayBuffer(1));
      }
      emit({ kind: "answered", poll });
    },
    prompt: ({ text, action }) => {
      if (text === "bad") return emit({ kind: "refused", text: "bad: give another", action });
      const number = ++kernel.nAdded;
      kernel.waiting.push({ number, text, seed: 0, state: "next", clips_before: 1, make_s: 2 });
      emit({ kind: "said", text: `Added: ${text}`, number, action });
      sayStatus([]);
    },
    remove: ({ number, action }) => {
      kernel.waiting = kernel.waiting.filter((each) => each.number !== number);
      emit({ kind: "said", text: "Taken out.", action });
      sayStatus([]);
    },
    move: ({ action }) => emit({ kind: "said", text: "Moved.", action }),
    record: ({ on, action }) => {
      kernel.recording = on ? "take.wav" : "";
      emit({ kind: "said", text: "Recording", action, ...(on ? {} : { file: { name: "take.wav", bytes: 5 } }) });
      sayStatus([]);
    },
    download: ({ name, start }) => emit({ kind: "part", name, start }, new ArrayBuffer(Math.min(3, 5 - start))),
  };
  const sayStatus = (ready) => {
    const facts = { queue: [], error: "", hints: [], recording: kernel.recording, recording_error: "", progress: 0.5 };
    emit({ kind: "status", ready, awaited: kernel.nAwaited > 0, waiting: kernel.waiting, cuts: false, ...facts });
  };
  kernel.emit = emit;
  kernel.model = {
    get: () => 0.8,
    on: (event, call) => (handlers[event] = call),
    off() {},
    send: (message) => {
      kernel.sent.push(message);
      if (kernel.isBusy) kernel.queue.push(message);
      else answer[message.kind]?.(message);
    },
  };
  kernel.wake = () => {
    kernel.isBusy = false;
    for (const message of kernel.queue.splice(0)) answer[message.kind]?.(message);
  };
  kernel.polls = () => kernel.sent.filter(({ kind }) => kind === "poll");
  return kernel;
}

function fakeAudio() {
  const context = fakeContext(1);
  context.createBufferSource = () => ({ connect() {}, start() {}, stop() {} });
  context.getOutputTimestamp = () => ({ contextTime: 0, performanceTime: 0 });
  context.resume = () => (context.state = "running");
  context.suspend = () => (context.state = "suspended");
  context.close = () => (context.state = "closed");
  return context;
}

// Begin a player with its own kernel; `pass` lets seconds go by for all of them.
function beginLive(t) {
  const contexts = [];
  mock.timers.enable({ apis: ["setInterval", "setTimeout", "Date"], now: 1e12 });
  t.after(() => {
    mock.timers.reset();
    delete globalThis.riffusionLabLive;
  });
  globalThis.AudioContext = function () {
    contexts.push(fakeAudio());
    return contexts.at(-1);
  };
  globalThis.GainNode = function () {
    return { connect() {}, gain: { setTargetAtTime() {} } };
  };
  globalThis.createImageBitmap = async () => null;
  const begin = (options) => {
    const kernel = fakeKernel(options);
    const live = makeLive(kernel.model);
    if (options?.isGone) kernel.isBusy = true;
    kernel.model.send({ kind: "ready" });
    return { kernel, live };
  };
  const pass = async (seconds) => {
    for (let i = 0; i < 20 * seconds; i++) {
      mock.timers.tick(50);
      for (const context of contexts) if (context.state === "running") context.currentTime += 0.05;
      await null; // what waits for a message goes on
    }
  };
  return { begin, pass };
}

test("a kernel that is busy for a minute gets one poll, and answers with no clip twice", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(5);
  assert.equal(live.state, "playing");
  kernel.isBusy = true;
  const before = kernel.polls().length;
  await pass(59);
  assert.equal(kernel.polls().length - before, 1);
  assert.ok(live.isBusy() && live.isLost());
  kernel.wake();
  await pass(1);
  assert.ok(!live.isBusy());
  assert.deepEqual(kernel.sentClips, [...new Set(kernel.sentClips)]);
  const begun = kernel.polls().flatMap((poll) => poll.begun);
  assert.equal(begun.length, live.line.joins + live.line.repeats + 1 - live.line.entries.filter((e) => !e.begun).length);
  assert.equal(live.line.underruns, 0);
});

test("while a new prompt's clip is awaited the kernel is asked more often, and the clip begins at a beat", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(4.3);
  const calm = kernel.polls().length;
  kernel.nAwaited = 8;
  live.act({ kind: "prompt", text: "techno" });
  const asked = live.line.entries.findLast((entry) => entry.begun);
  await pass(0.9); // eight polls
  const number = kernel.atBeat;
  assert.ok(number > 0);
  assert.ok(Math.abs(kernel.polls().length - calm - 8) <= 1, `${kernel.polls().length - calm} polls`);
  const entry = live.line.entries.find(({ clip }) => clip.number === number);
  const before = live.line.entries[live.line.entries.indexOf(entry) - 1];
  assert.ok(before.begin <= asked.end && before.end - before.begin === 22050);
  await pass(2);
  const after = kernel.polls().length;
  await pass(5);
  assert.ok(Math.abs(kernel.polls().length - after - 10) <= 1);
  const told = kernel.polls().flatMap((poll) => poll.begun);
  assert.deepEqual(told.filter(({ cut_s }) => cut_s !== null), [{ number, cut_s: 0.5 }]);
  assert.equal(live.line.underruns, 0);
});

test("what the end of a recording needs is how much of the clip was heard", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  assert.deepEqual(live.heardSoFar(), { begun: [], heard_s: null });
  live.play();
  await pass(0.5);
  const told = kernel.polls().flatMap((poll) => poll.begun);
  const { begun, heard_s } = live.heardSoFar();
  assert.deepEqual([...told, ...begun].map((each) => each.number), [1]);
  const [entry] = live.line.entries;
  assert.ok(Math.abs(heard_s - (live.now() - entry.start)) < 1e-9 && heard_s > 0);
  assert.deepEqual(live.heardSoFar().begun, []); // told once
});

test("after a poll that is lost comes another, and its late answer begins no second loop", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(2);
  kernel.isBusy = true;
  const before = kernel.polls().length;
  await pass(62);
  assert.equal(kernel.polls().length - before, 2);
  assert.ok(live.isLost()); // said all the time, not only until the second one is sent
  await pass(38);
  assert.equal(kernel.polls().length - before, 2);
  kernel.wake(); // answers both
  const woken = kernel.polls().length;
  await pass(10);
  assert.ok(Math.abs(kernel.polls().length - woken - 20) <= 1);
});

test("ten quick clicks on Play and Pause leave one loop", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  for (let i = 0; i < 9; i++) live.isPlaying() ? live.pause() : live.play();
  live.play();
  const before = kernel.polls().length;
  await pass(10);
  assert.ok(Math.abs(kernel.polls().length - before - 20) <= 1);
});

test("a clip that comes twice is taken once", async (t) => {
  const { begin, pass } = beginLive(t);
  const taken = [];
  globalThis.createImageBitmap = async (picture) => taken.push(picture);
  const { kernel, live } = begin();
  live.play();
  await pass(1);
  const before = taken.length;
  assert.ok(before >= 2);
  for (const number of [1, 2]) kernel.emit({ kind: "clip", number, label: "" }, new ArrayBuffer(2), new ArrayBuffer(1));
  assert.equal(taken.length, before);
});

test("a player that begins pauses the other, says why, and gives way again", async (t) => {
  const { begin, pass } = beginLive(t);
  const [first, second] = [begin(), begin()];
  first.live.play();
  await pass(2);
  second.live.play();
  await pass(2);
  assert.deepEqual([first.live.state, second.live.state], ["paused", "playing"]);
  assert.match(first.live.reason, /another Live/);
  const before = first.kernel.sent.length;
  await pass(5);
  assert.equal(first.kernel.sent.length, before);
  first.live.play();
  assert.deepEqual([first.live.isPlaying(), second.live.state], [true, "paused"]);
  first.live.close();
  second.live.play(); // nobody is there to be paused
  assert.ok(second.live.isPlaying());
});

test("an action is acknowledged at once, said to be on its way after a second, and then answered", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  kernel.isBusy = true;
  live.addPrompt("techno");
  assert.equal(saidText(live), "Prompt sent.");
  assert.deepEqual(live.chips().map(({ text, state }) => [text, state])[0], ["techno", "sent"]);
  live.act({ kind: "change", guidance_scale: 2 }, "Guidance 2: sent.");
  assert.equal(saidText(live), "Guidance 2: sent.");
  assert.ok(!live.isUnanswered());
  await pass(1);
  assert.ok(live.isUnanswered());
  assert.match(saidText(live), /not answered yet/);
  live.pending.delete(2); // the fake kernel knows no settings
  kernel.wake();
  assert.ok(!live.isUnanswered());
  assert.equal(saidText(live), "Added: techno");
  assert.deepEqual(live.chips().map(({ text, state }) => [text, state]), [["techno", "next"]]);
});

test("an error stays until another action succeeds, or it is dismissed", async (t) => {
  const { begin } = beginLive(t);
  const { kernel, live } = begin();
  live.addPrompt("bad");
  assert.equal(saidText(live), "bad: give another");
  assert.deepEqual(live.sent, []);
  kernel.isBusy = true;
  live.addPrompt("techno");
  assert.equal(saidText(live), "Prompt sent. Before that: bad: give another");
  kernel.wake();
  assert.equal(saidText(live), "Added: techno");
  live.addPrompt("  ");
  assert.match(saidText(live), /is empty/);
  live.dismiss();
  assert.equal(saidText(live), "");
});

test("a double click adds a prompt once, and a prompt may be taken out before the kernel knows it", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  kernel.isBusy = true;
  live.addPrompt("techno");
  live.addPrompt("techno");
  await pass(0.2);
  live.addPrompt("jazz");
  live.removePrompt(live.chips()[0]);
  assert.deepEqual(live.chips().slice(0, 2).map(({ text, state }) => [text, state]), [["techno", "leaving"], ["jazz", "sent"]]);
  kernel.wake();
  assert.deepEqual(kernel.waiting.map(({ text }) => text), ["jazz"]);
  assert.deepEqual(live.chips().map(({ text }) => text), ["jazz"]);
});

test("a prompt that is moved changes its place at once, and one that is taken out is marked", async (t) => {
  const { begin } = beginLive(t);
  const { kernel, live } = begin();
  for (const text of ["techno", "jazz", "slow"]) live.addPrompt(text);
  kernel.isBusy = true;
  live.movePrompt(3, 0);
  live.removePrompt(live.chips()[1]);
  assert.deepEqual(live.chips().map(({ text, state }) => [text, state]), [["slow", "next"], ["techno", "leaving"], ["jazz", "next"]]);
});

test("the seed clip sounds at once, goes round, counts as nothing, and gives way at a beat", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin({ intro: true });
  kernel.fixed = [];
  live.play();
  assert.equal(live.line.entries[0].start, 0.05); // on the clock that begins with the click
  assert.match(stateText(live), /you hear the seed clip/);
  await pass(3.3);
  assert.equal(live.state, "waiting");
  assert.ok(live.line.entries.every(({ clip }) => clip.isIntro));
  assert.deepEqual(live.heardSoFar(), { begun: [], heard_s: null });
  kernel.fixed = [1, 2, 3, 4];
  await pass(2);
  assert.equal(live.state, "playing");
  const first = live.line.entries.findIndex(({ clip }) => clip.number === 1);
  const before = live.line.entries[first - 1];
  assert.ok(before.clip.isIntro && (before.end - before.begin) % 5512 === 0 && before.end - before.begin < RATE);
  const told = kernel.polls().flatMap((poll) => poll.begun);
  assert.deepEqual(told[0], { number: 1, cut_s: null });
  const heard = live.line.entries.filter((entry) => !entry.clip.isIntro);
  assert.equal(live.line.joins + live.line.repeats + 1, heard.length);
  assert.ok(live.line.repeats <= 1); // of the first: clips of a second are shorter than what is decided ahead
  assert.equal(live.line.underruns, 0);
  assert.ok(live.line.jump < 0.05);
});

test("a front end that loses the seed clip's bytes says so before and after Play", async (t) => {
  const { begin } = beginLive(t);
  const { live } = begin({ intro: true, loses: true });
  assert.match(stateText(live), /plays in JupyterLab/);
  live.play();
  assert.equal(live.state, "ended");
});

test("a kernel that never answers is said to be gone within seconds, also before Play", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin({ isGone: true });
  assert.equal(live.state, "loading");
  live.play();
  assert.match(stateText(live), /as soon as the kernel answers/);
  await pass(5);
  assert.match(stateText(live), /busy, or gone/);
  await pass(8);
  assert.match(stateText(live), /does not answer.*run this cell again/);
  kernel.wake();
  assert.ok(live.isPlaying()); // Play was pressed
});

test("a window in which another one begins to play pauses, and hears nothing of the other's answers", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(1);
  const told = kernel.polls();
  assert.ok(told[0].starts && !told.at(-1).starts && told.every(({ listener }) => listener === live.id));
  kernel.emit({ kind: "halted", text: "not this one", listener: "another" });
  assert.equal(live.state, "playing");
  kernel.emit({ kind: "halted", text: "it plays elsewhere", listener: live.id });
  assert.match(stateText(live), /Paused: it plays elsewhere/);
});

test("in a replay each clip is heard as often as it was, and cut where it was", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  kernel.fixed = [1, 2, 3, 4, 5, 6];
  kernel.times = { 2: 2.25, 3: 0.5 };
  live.play();
  await pass(8);
  const heard = live.line.entries.filter(({ clip }) => [2, 3].includes(clip.number));
  assert.deepEqual(heard.map(({ clip, begin: from, end }) => [clip.number, end - from]), [[2, RATE], [2, RATE], [2, RATE / 4], [3, RATE / 2]]);
  const told = kernel.polls().flatMap((poll) => poll.begun);
  const second = told.findIndex(({ number }) => number === 2);
  assert.deepEqual(told.slice(second, second + 5), [
    { number: 2, cut_s: null },
    { number: 2, cut_s: null },
    { number: 2, cut_s: null },
    { number: 3, cut_s: 0.25 },
    { number: 4, cut_s: 0.5 },
  ]);
  assert.equal(live.line.underruns, 0);
});

test("a recording's timer begins with its first clip, and its file comes in parts", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(0.5);
  live.act({ kind: "record", on: true });
  assert.equal(live.recordsFrom, null);
  await pass(1.2);
  assert.ok(live.recordsFrom > 0.5 && live.recordsFrom <= 1.7);
  live.act({ kind: "record", on: false, ...live.heardSoFar() });
  assert.equal(live.recordsFrom, null);
  assert.deepEqual(live.file, { name: "take.wav", bytes: 5 });
  live.download();
  assert.ok(live.file.url.startsWith("blob:"));
  assert.deepEqual(kernel.sent.filter(({ kind }) => kind === "download").map(({ start }) => start), [0, 3]);
});

test("what is expected of a prompt is when its clip is made, or what sounds before it is over", async (t) => {
  const { begin, pass } = beginLive(t);
  const { kernel, live } = begin();
  live.play();
  await pass(1);
  live.addPrompt("techno");
  const [chip] = live.chips();
  assert.ok(chip.seconds === 2 && /^next · 2 s$/.test(chipText(chip)));
  kernel.waiting[0].clips_before = 4;
  kernel.waiting[0].state = "making";
  await pass(0.6);
  const [later] = live.chips();
  assert.ok(later.seconds > 4 && later.seconds <= 5 && later.progress === 0.5);
});
