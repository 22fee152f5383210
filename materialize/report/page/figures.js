// Draws the figures; colours that depend on light or dark come from the page's style.
const Page = (function () {
  "use strict";
  const config = { displayModeBar: false, responsive: true };
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  // Plotly reads a subset of HTML in names and hover texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // Return a copy with the style's values in place of "var(--name)".
  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[a-z]+)\)$/.exec(value);
      return name === null ? value : style.getPropertyValue(name[1]).trim();
    }
    if (Array.isArray(value)) return value.map((v) => coloured(v, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
  }

  // Names of rows take half of a phone's width unless they are broken into lines.
  const narrow = 560, letters = 18;
  function broken(name) {
    const lines = [""];
    for (const word of name.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length >= letters) lines.push(word);
      else lines[lines.length - 1] = last ? last + " " + word : word;
    }
    return lines.join("<br>");
  }

  function fitted(layout, width) {
    const names = layout.yaxis && layout.yaxis.ticktext;
    if (!names || width >= narrow) return layout;
    const texts = names.map(broken);
    const more = texts.reduce((sum, text) => sum + 9 * (text.split("<br>").length - 1), 0);
    return {
      ...layout,
      height: layout.height + more,
      xaxis: { ...layout.xaxis, nticks: 4, tickangle: 0 },
      yaxis: { ...layout.yaxis, ticktext: texts, tickfont: { size: 11.5 } },
    };
  }

  function plot(target, traces, layout) {
    const style = getComputedStyle(document.documentElement);
    Plotly.react(target, coloured(traces, style), coloured(fitted(layout, target.clientWidth), style), config);
  }

  const drawings = [];
  // Draw now, and again when the reader's scheme changes.
  function keepDrawn(draw) {
    drawings.push(draw);
    draw();
  }
  scheme.addEventListener("change", () => drawings.forEach((draw) => draw()));

  // Drawn when the reader comes near, so that a long page opens quickly. What is hidden has no
  // width and is not met before it is shown.
  const waiting = new Map(Object.entries(read("figures")).map(([name, figure]) =>
    [document.getElementById("figure-" + name), figure]));
  const seen = new IntersectionObserver((met) => met.forEach((m) => { if (m.isIntersecting) meet(m.target); }),
    { rootMargin: "600px" });
  function meet(target) {
    const figure = waiting.get(target);
    seen.unobserve(target);
    waiting.delete(target);
    keepDrawn(() => plot(target, figure.data, figure.layout));
  }
  for (const target of waiting.keys()) seen.observe(target);
  window.addEventListener("beforeprint", () => {
    [...waiting.keys()].filter((target) => target.offsetParent !== null).forEach(meet);
  });
  return { keepDrawn, plain, plot, read };
})();
