// The endless player's clips on the sample clock. Python puts this text before that of the player.

const SOON_S = 0.1; // what sounds so soon is not changed any more: it may be computed already
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

  // Measure the step from the last sample of the last entry to the next, and count the join, except to the seed clip
  // that sounds before the first clip is made.
  function count(clip, samples) {
    line.jump = Math.max(line.jump, Math.abs(samples[0] - last.clip.samples[last.end - last.begin - 1]));
    if (last.clip.isIntro) return null;
    const join = comesRound(clip) ? "repeats" : "joins";
    line[join]++;
    return join;
  }

  // Let a clip sound next; `length` is how many of its samples, if not all.
  line.add = (clip, length = clip.samples.length) => {
    const now = frameNow();
    if (last && last.end < now) {
      line.underruns++;
      last = null;
    }
    const begin = last ? last.end : now + Math.round(0.05 * rate);
    const end = begin + length;
    const wasCut = last && isCut(last) && !last.clip.isIntro;
    const cut = wasCut ? (last.end - last.begin) / rate : null; // seconds heard of a clip that was cut
    const samples = joined(clip).subarray(0, length);
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
  // seconds were heard of the clip before when it last came round, if it was cut. The seed clip is none of the session's.
  line.begun = (time) => {
    line.entries = line.entries.filter((entry) => entry.stop > time - KEPT_S);
    const begun = line.entries.filter((entry) => !entry.begun && entry.start <= time);
    for (const entry of begun) entry.begun = true;
    return begun.filter(({ clip }) => !clip.isIntro).map(({ clip, cut }) => ({ number: clip.number, cut_s: cut }));
  };

  line.stop = () => {
    for (const entry of line.entries) entry.source.stop();
    last = null;
  };
  return line;
}
