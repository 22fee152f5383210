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

  function plot(target, traces, layout) {
    const style = getComputedStyle(document.documentElement);
    Plotly.react(target, coloured(traces, style), coloured(layout, style), config);
  }

  const drawings = [];
  // Draw now, and again when the reader's scheme changes.
  function keepDrawn(draw) {
    drawings.push(draw);
    draw();
  }
  scheme.addEventListener("change", () => drawings.forEach((draw) => draw()));

  for (const [name, figure] of Object.entries(read("figures"))) {
    keepDrawn(() => plot("figure-" + name, figure.data, figure.layout));
  }
  return { keepDrawn, plain, plot, read };
})();
