"use strict";
// Fetches the page again every few seconds, with the query of its URL, and replaces what has changed.
// The texts of the filter and of the search form, open details, the focus, a selection and the scroll
// position stay.
(() => {
  const SHORTEST_PAUSE = 3000;
  const LONGEST_PAUSE = 60000;
  const TIMEOUT = 15000;
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const filter = byId("filter");
  const live = byId("live");
  const unreachable = byId("unreachable");
  let condition = "";
  let lostAt = null;
  let shownAt = new Date();

  const clock = (time) => time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  // A bundle is shown if its text has every word of the filter.
  function apply(list) {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const bundle of list.tBodies) {
      const text = words.length > 0 ? bundle.textContent.toLowerCase() : "";
      const isShown = (!condition || bundle.classList.contains(condition)) && words.every((word) => text.includes(word));
      bundle.hidden = !isShown;
      shown += isShown ? 1 : 0;
    }
    return shown;
  }

  function applyFilter() {
    const list = byId("list");
    const shown = list ? apply(list) : 0;
    const all = list ? list.tBodies.length : 0;
    byId("shown").textContent = shown === all ? "" : `${shown} of ${all} shown`;
    for (const link of document.querySelectorAll(".counts a")) {
      link.setAttribute("aria-current", String(condition !== "" && link.dataset.condition === condition));
    }
  }

  // Replacing a text that the user selects would end the selection. It is asked for once: after each
  // change the browser would have to lay out the page to answer.
  function selectedRange() {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed ? selection.getRangeAt(0) : null;
  }

  const isSelected = (range, element) => range !== null && range.intersectsNode(element);

  function replace(old, fresh) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const placed = document.adoptNode(fresh);
    old.replaceWith(placed);
    if (focused) {
      const owner = focused.id ? null : focused.closest("[id]");
      const again = owner ? byId(owner.id)?.querySelector(focused.localName) : byId(focused.id);
      again?.focus({ preventScroll: true });
    }
    return placed;
  }

  function keepState(fresh) {
    for (const details of fresh.querySelectorAll("details[id]")) {
      const known = byId(details.id);
      details.open = known !== null && known.open;
    }
    for (const link of fresh.querySelectorAll(".counts a")) {
      link.setAttribute("aria-current", String(condition !== "" && link.dataset.condition === condition));
    }
  }

  // Replaces the bundles that have changed, and moves those whose place is another.
  function updateList(list, fresh, selected) {
    const known = new Map();
    for (const bundle of list.tBodies) known.set(bundle.id, bundle);
    let next = list.tBodies[0] ?? null;
    for (const bundle of [...fresh.tBodies]) {
      const old = known.get(bundle.id);
      known.delete(bundle.id);
      let placed = old ?? document.adoptNode(bundle);
      if (old) {
        keepState(bundle);
        bundle.hidden = old.hidden;
        if (!old.isEqualNode(bundle) && !isSelected(selected, old)) {
          if (old.dataset.version !== bundle.dataset.version) bundle.classList.add("changed");
          placed = replace(old, bundle);
          if (next === old) next = placed;
        }
      }
      if (placed === next) next = placed.nextElementSibling;
      else list.insertBefore(placed, next);
    }
    for (const gone of known.values()) gone.remove();
  }

  function update(fresh) {
    const list = byId("list");
    const freshList = fresh.getElementById("list");
    const [x, y] = [scrollX, scrollY];
    const selected = selectedRange();
    for (const old of document.querySelectorAll("[data-live]")) {
      const part = fresh.getElementById(old.id);
      if (!part) continue;
      keepState(part);
      if (!old.isEqualNode(part) && !isSelected(selected, old)) replace(old, part);
    }
    if (list && freshList) updateList(list, freshList, selected);
    document.title = fresh.title;
    applyFilter();
    if (scrollX !== x || scrollY !== y) scrollTo({ left: x, top: y, behavior: "instant" });
  }

  function reached() {
    lostAt = null;
    shownAt = new Date();
    root.classList.remove("unreachable");
    unreachable.hidden = true;
    live.textContent = "Live";
  }

  function lost(reason) {
    const isNew = lostAt === null;
    lostAt ??= new Date();
    root.classList.add("unreachable");
    live.textContent = "Not live";
    if (!isNew && unreachable.dataset.reason === reason) return;
    unreachable.dataset.reason = reason;
    unreachable.textContent = `${reason} since ${clock(lostAt)}. Shown is the state of ${clock(shownAt)}. Trying again.`;
    unreachable.hidden = false;
  }

  // The time in which the gateway has last made and sent the page.
  let fetchTime = 0;

  async function refresh() {
    const began = performance.now();
    let response;
    try {
      response = await fetch(location.pathname + location.search, { cache: "no-store", redirect: "error", signal: AbortSignal.timeout(TIMEOUT) });
    } catch {
      return lost("The gateway can't be reached");
    }
    // A page with an invalid query says so itself.
    if (!response.ok && response.status !== 400) return lost(`The gateway answers with status ${response.status}`);
    let text;
    try {
      text = await response.text();
    } catch {
      return lost("The connection to the gateway breaks");
    } finally {
      fetchTime = performance.now() - began;
    }
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const build = fresh.documentElement.dataset.build;
    if (!build) return lost("Another server answers at this address");
    // Another version of bundlegate has its own style sheet and script.
    if (build !== root.dataset.build) return location.reload();
    update(fresh);
    reached();
  }

  let wake = () => {};

  async function run() {
    for (;;) {
      if (!document.hidden) await refresh();
      // A page of thousands of bundles costs the gateway time, and is fetched less often.
      const pause = Math.max(SHORTEST_PAUSE, 10 * fetchTime);
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, Math.min(pause, LONGEST_PAUSE));
      });
    }
  }

  filter.closest("[hidden]")?.removeAttribute("hidden");
  filter.addEventListener("input", applyFilter);
  // A slash that is typed into a field stays there.
  const isTyping = () => document.activeElement?.closest("input, select, textarea") != null;
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !isTyping()) {
      event.preventDefault();
      filter.focus();
    } else if (event.key === "Escape" && document.activeElement === filter) {
      filter.value = "";
      applyFilter();
    }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".counts a");
    if (!link) return;
    event.preventDefault();
    const wanted = link.dataset.condition;
    condition = condition === wanted ? "" : wanted;
    applyFilter();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) wake(); });
  // A browser restores the text of the filter.
  applyFilter();
  live.textContent = "Live";
  setTimeout(run, SHORTEST_PAUSE);
})();
