// The prompts that wait, as chips: one tab stop, moved by Alt and the arrow keys or by dragging (a finger drags by the
// grip), taken out by Delete or their button. Python puts this text before that of the player.

const DRAG_PX = 5; // a pointer that moves less only clicks

function makeChip() {
  const grip = make("span", { class: "rl-chip-grip", "aria-hidden": "true" }, makeIcon("grip"));
  const text = make("span", { class: "rl-chip-text" });
  const state = make("span", { class: "rl-chip-state rl-dim" });
  const bar = make("div", { class: "rl-chip-bar" });
  const drop = make("button", { type: "button", tabindex: -1, class: "rl-chip-drop" }, "×");
  const node = make("li", { class: "rl-chip", "data-testid": "rl-chip", tabindex: -1 });
  node.append(grip, text, state, drop, make("div", { class: "rl-chip-rail" }, bar));
  return { node, grip, text, state, bar, drop, chip: null };
}

function fillChip(part, chip, place, n_chips) {
  part.chip = chip;
  const short = [...chip.text.slice(0, LONGEST_LABEL)].join("") || "(no words)";
  const words = chipText(chip);
  const drops = chip.state === "making" || chip.state === "made" ? "Skip" : "Take out";
  setText(part.text, short);
  setText(part.state, words);
  const seed = chip.seed === undefined ? "" : `, seed ${chip.seed}`;
  const facts = { "data-state": chip.state, "data-number": chip.number ?? "", title: `${short}${seed}` };
  const keys = chip.isFixed ? "" : " Alt and arrow keys move it, Delete takes it out";
  setAll(part.node, { ...facts, "aria-label": `${short}: ${words}, ${place + 1} of ${n_chips}.${keys}` });
  part.drop.style.display = chip.isFixed ? "none" : "";
  setText(part.drop, drops === "Skip" ? "Skip" : "×");
  if (part.drop.title !== drops) setAll(part.drop, { title: drops, "aria-label": `${drops}: ${short.slice(0, 40)}` });
  part.bar.style.width = `${100 * chip.progress}%`;
  part.bar.parentElement.style.visibility = chip.state === "making" ? "visible" : "hidden";
}

// Which chip's middle is nearest to a point of the list, wherever the one that is dragged is now.
function nearestPlace(nodes, x, y) {
  const far = ({ offsetLeft, offsetTop, offsetWidth, offsetHeight }) =>
    Math.hypot(x - offsetLeft - offsetWidth / 2, 3 * (y - offsetTop - offsetHeight / 2));
  const distances = nodes.map(far);
  return distances.indexOf(Math.min(...distances));
}

// The list of chips of a view; `show` draws them again. Returns its node and that function.
function makeChips(live, focusElsewhere) {
  const list = make("ol", { class: "rl-chips", "aria-label": "Prompts that wait", "data-testid": "rl-prompts" });
  const parts = new Map(); // by the chip's key
  let current = null; // key of the chip that Tab leads to
  let drag = null;

  const inOrder = () => [...list.children].map((node) => [...parts.values()].find((part) => part.node === node));
  const movable = () => inOrder().filter(({ chip }) => chip.number !== null);

  function focusChip(part) {
    if (!part) return;
    current = part.chip.key;
    for (const other of parts.values()) other.node.tabIndex = other === part ? 0 : -1;
    part.node.focus();
  }

  function remove(part) {
    if (part.chip.isFixed || part.chip.state === "leaving") return;
    const order = inOrder();
    const next = order[order.indexOf(part) + 1] ?? order[order.indexOf(part) - 1];
    const hadFocus = part.node.contains(document.activeElement);
    live.removePrompt(part.chip);
    if (hadFocus && next) focusChip(next);
    else if (hadFocus) focusElsewhere();
  }

  function moveTo(part, place) {
    const from = movable().indexOf(part);
    if (from < 0 || place === from || place < 0 || place >= movable().length) return;
    live.movePrompt(part.chip.number, place);
    focusChip(part);
  }

  // What a key does to a chip; undefined for keys that are not the list's.
  function actOf(event, part) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const order = inOrder();
    if (step && event.altKey) return () => moveTo(part, movable().indexOf(part) + step);
    if (step && isPlain(event)) return () => focusChip(order[order.indexOf(part) + step]);
    if ((event.key === "Delete" || event.key === "Backspace") && isPlain(event)) return () => remove(part);
    return undefined;
  }

  function onKey(event) {
    const part = [...parts.values()].find(({ node }) => node === event.target);
    const act = part ? actOf(event, part) : undefined;
    if (!act) return;
    event.preventDefault(); // Alt and an arrow would leave the page
    event.stopPropagation();
    act();
  }

  function onDown(event, part) {
    if (drag || event.button || part.drop.contains(event.target) || part.chip.number === null) return;
    if (event.pointerType !== "mouse" && !part.grip.contains(event.target)) return; // a finger elsewhere scrolls
    const { pointerId: pointer, clientX: x, clientY: y } = event;
    drag = { part, pointer, x, y, height: list.scrollHeight, isMoving: false };
    part.node.setPointerCapture(pointer);
  }

  function placeAt({ clientX, clientY }) {
    const { left, top } = list.getBoundingClientRect();
    const nodes = movable().map(({ node }) => node);
    return nearestPlace(nodes, clientX - left + list.scrollLeft, clientY - top + list.scrollTop);
  }

  // Show on which side of which chip the one that is dragged would land; at its own place, and without one, nowhere.
  function markLanding(part, to) {
    const from = movable().indexOf(part);
    const side = to < from ? "before" : "behind";
    movable().forEach(({ node }, place) => {
      node.dataset.landing = place === to && to !== from ? side : "";
    });
  }

  function onMove(event) {
    if (drag?.pointer !== event.pointerId) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.isMoving ||= Math.hypot(x, y) > DRAG_PX;
    if (!drag.isMoving) return;
    const { node } = drag.part;
    const toRight = within(x, -node.offsetLeft, list.clientWidth - node.offsetWidth - node.offsetLeft);
    const down = within(y, -node.offsetTop, drag.height - node.offsetHeight - node.offsetTop);
    node.style.transform = `translate(${toRight}px, ${down}px)`; // further out, the list would get scroll bars
    node.classList.add("rl-dragged");
    markLanding(drag.part, placeAt(event));
  }

  function onUp(event) {
    if (drag?.pointer !== event.pointerId) return;
    const { part, isMoving } = drag;
    drag = null;
    part.node.style.transform = "";
    part.node.classList.remove("rl-dragged");
    markLanding(part, -1);
    if (isMoving && event.type === "pointerup") moveTo(part, placeAt(event));
    live.show();
  }

  function addPart(key) {
    const part = makeChip();
    parts.set(key, part);
    part.drop.addEventListener("click", () => remove(part));
    part.node.addEventListener("pointerdown", (event) => onDown(event, part));
    part.node.addEventListener("pointermove", onMove);
    for (const name of ["pointerup", "pointercancel"]) part.node.addEventListener(name, onUp);
    return part;
  }

  // Take away what waits no more; what has the focus gives it to a neighbour.
  function dropOthers(keys) {
    for (const [key, part] of [...parts]) {
      if (keys.includes(key)) continue;
      const hadFocus = part.node.contains(document.activeElement);
      const neighbour = inOrder().find(({ chip }) => keys.includes(chip.key));
      part.node.remove();
      parts.delete(key);
      if (hadFocus && neighbour) focusChip(neighbour);
      else if (hadFocus) focusElsewhere();
    }
  }

  function show() {
    if (drag?.isMoving) return; // what is held stays in hand
    const chips = live.chips();
    dropOthers(chips.map(({ key }) => key));
    const focus = list.contains(document.activeElement) ? document.activeElement : null;
    chips.forEach((chip, i) => {
      const part = parts.get(chip.key) ?? addPart(chip.key);
      fillChip(part, chip, i, chips.length);
      if (list.children[i] !== part.node) list.insertBefore(part.node, list.children[i] ?? null);
    });
    if (focus && document.activeElement !== focus) focus.focus(); // what is moved in the page loses it
    if (!chips.some(({ key }) => key === current)) current = chips[0]?.key ?? null;
    for (const [key, part] of parts) part.node.tabIndex = key === current ? 0 : -1;
  }

  list.addEventListener("keydown", onKey);
  return { list, show };
}
