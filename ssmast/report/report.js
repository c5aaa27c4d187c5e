// The scatter of clips: hovering names, clicking plays, keys and list do the same.
(function () {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  async function start(root) {
    const find = (selector) => root.querySelector(selector);
    const data = JSON.parse(find('script[type="application/json"]').textContent);
    const target = find(".plot"), list = find(".clips"), audio = find("audio");
    const play = find(".play"), name = find(".name"), near = find(".near");
    const manager = await Bokeh.embed.embed_item(data.plot, target.id);
    const view = manager.roots[0], plot = view.model, model = (n) => plot.document.get_model_by_name(n);
    const source = model("clips"), ring = model("around"), shown = model("shown");
    let column = data.columns[find(".column").value], chosen = -1;

    function title(i) { return data.clips[i] + " (" + data.classes[data.labels[i]] + ")"; }
    function visible(i) { return shown.booleans[i]; }

    function paint() {
      plot.setv({ background_fill_color: null, border_fill_color: null,
                  outline_line_color: colour("--line") });
      for (const grid of plot.center) grid.grid_line_color = null;
      ringed().glyph.line_color = { value: colour("--text") };
    }
    // Bokeh's tools have names for a pointer only, and its canvas would be one more stop of Tab.
    function label(node) {
      for (const one of [...(node.shadowRoot?.children ?? []), ...node.children]) {
        if (one.tabIndex === 0) {
          if (!one.title) one.tabIndex = -1;
          else { one.setAttribute("role", "button"); one.setAttribute("aria-label", one.title); }
        }
        label(one);
      }
    }
    function ringed() { return plot.renderers.find((r) => r.name === "ring"); }

    function fit() {
      for (const axis of ["x", "y"]) {
        const low = Math.min(...column[axis]), high = Math.max(...column[axis]);
        const pad = 0.05 * (high - low || 1), range = plot[axis + "_range"];
        range.setv({ start: low - pad, end: high + pad, reset_start: low - pad, reset_end: high + pad });
      }
    }

    function mark() {
      const around = chosen < 0 ? [] : column.neighbours[chosen].filter(visible);
      const points = chosen < 0 ? [] : [chosen, ...around];
      ring.data = { x: points.map((i) => column.x[i]), y: points.map((i) => column.y[i]),
                    size: points.map((i) => (i === chosen ? 20 : 13)) };
    }

    function choose(i, loud) {
      chosen = i;
      source.selected.indices = [i];
      const option = list.querySelector('option[value="' + i + '"]');
      if (option) option.selected = true;
      name.textContent = title(i) + (data.sound[i] ? "" : " \u2013 no sound on this page");
      play.disabled = !data.sound[i];
      near.replaceChildren(...column.neighbours[i].map((other, rank) => {
        const item = document.createElement("li"), button = document.createElement("button");
        button.type = "button";
        button.textContent = title(other);
        button.classList.toggle("other", data.labels[other] !== data.labels[i]);
        button.addEventListener("click", () => sound(other));
        item.append(button, " " + column.similarity[i][rank].toFixed(3));
        return item;
      }));
      mark();
      if (loud) sound(i);
    }

    function sound(i) {
      audio.pause();
      if (!data.sound[i]) { audio.removeAttribute("src"); return; }
      audio.src = data.sound[i];
      audio.dataset.clip = data.clips[i];
      audio.play().catch((error) => {
        if (error.name !== "AbortError") name.textContent = title(i) + " \u2013 cannot be played: " + error.message;
      });
    }

    // A click that moved was a drag of the picture.
    let down = null;
    target.addEventListener("pointerdown", (event) => { down = event; }, true);
    target.addEventListener("click", (event) => {
      if (down && Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > 6) return;
      setTimeout(() => { const hit = source.selected.indices; if (hit.length) choose(hit[0], true); }, 0);
    });

    // Arrow keys: the nearest visible clip within 45 degrees of the direction.
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    target.addEventListener("keydown", (event) => {
      const way = directions[event.key];
      if (way) {
        event.preventDefault();
        let best = -1, least = Infinity;
        for (let i = 0; i < data.clips.length; i++) {
          if (!visible(i) || i === chosen) continue;
          const x = chosen < 0 ? 0 : column.x[i] - column.x[chosen];
          const y = chosen < 0 ? 0 : column.y[i] - column.y[chosen];
          const along = x * way[0] + y * way[1], across = Math.abs(x * way[1]) + Math.abs(y * way[0]);
          if (chosen >= 0 && (along <= 0 || across > along)) continue;
          const far = Math.hypot(x, y);
          if (far < least) { least = far; best = i; }
        }
        if (best >= 0) choose(best, false);
      } else if ((event.key === "Enter" || event.key === " ") && chosen >= 0) {
        event.preventDefault();
        sound(chosen);
      }
    });

    list.addEventListener("change", () => choose(Number(list.value), false));
    list.addEventListener("dblclick", () => choose(Number(list.value), true));
    list.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && list.value) choose(Number(list.value), true);
    });
    play.addEventListener("click", () => sound(chosen));

    const options = [...list.options];
    function filter() {
      const words = find(".find").value.toLowerCase();
      list.replaceChildren(...options.filter((option) =>
        visible(Number(option.value)) && option.text.toLowerCase().includes(words)));
    }
    find(".find").addEventListener("input", filter);
    find(".legend").addEventListener("change", () => {
      const kept = new Set([...root.querySelectorAll(".legend input:checked")].map((box) => Number(box.value)));
      shown.booleans = data.labels.map((label) => kept.has(label));
      mark();
      filter();
    });
    find(".column").addEventListener("change", (event) => {
      column = data.columns[event.target.value];
      source.data = { ...Object.fromEntries(Object.entries(source.data)), x: column.x, y: column.y };
      fit();
      if (chosen >= 0) choose(chosen, false);
    });
    dark.addEventListener("change", paint);
    fit();
    paint();
    target.addEventListener("focusin", () => label(target));  // Bokeh draws them anew at times
    setTimeout(() => label(target), 0);
    root.dataset.ready = "true";
  }

  for (const root of document.querySelectorAll(".scatter")) start(root);
})();
