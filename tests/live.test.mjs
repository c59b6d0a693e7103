// The joins of the endless player, without a browser: `node --test`, with the widget's text in the file LIVE_MODULE names.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const { crossfade, makeTimeline, pickNext } = await import(pathToFileURL(process.env.LIVE_MODULE));
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
      this.buffer.data.forEach((value, i) => (heard[Math.round(frame) + i] += value));
    },
    stop: () => context.stopped++,
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
  assert.deepEqual(line.begun(1.2), [1, 2]);
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

test("the next clip is the first wanted one, else one of before, else the last again", () => {
  const [last, old, fresh, later] = [1, 2, 3, 4].map((number) => ({ number }));
  assert.deepEqual(pickNext([old, fresh, later], [3, 4], last), { clip: fresh, waiting: [later] });
  assert.deepEqual(pickNext([old], [], last), { clip: old, waiting: [] });
  assert.deepEqual(pickNext([], [], last), { clip: last, waiting: [] });
});
