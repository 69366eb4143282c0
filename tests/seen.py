"""What a reader with a small screen, weak eyes or only a keyboard meets on a page of a browser."""

from typing import Any

# Texts whose contrast with what is behind them is below 4.5, or 3 if they are large (WCAG 2.2, level AA).
PALE = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const parsed = {};  // reading the canvas back is slow
  const parse = color => parsed[color] ??= read(color);
  const read = color => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = color => {
    const [r, g, b] = color.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = node => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches
      && getComputedStyle(document.documentElement).colorScheme.includes("dark");
    return layers.reverse().reduce((below, top) => over(top, below), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility({opacityProperty: true, visibilityProperty: true})
        || ["SCRIPT", "STYLE"].includes(node.tagName) || node.getBoundingClientRect().width < 2) continue;
    const style = getComputedStyle(node), below = behind(node), color = over(parse(style.color), below);
    const [low, high] = [light(color), light(below)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const ratio = (high + .05) / (low + .05);
    const name = `${node.tagName}.${node.className} ${text.slice(0, 40)}`;
    if (ratio < (large ? 3 : 4.5)) found.add(`${ratio.toFixed(1)} ${name}`);
  }
  return [...found];
}"""
# Controls that a screen reader cannot name.
UNNAMED = """() => [...document.querySelectorAll("button, input, textarea, select, canvas, img")]
  .filter(one => one.checkVisibility() && one.type !== "hidden"
    && !(one.ariaLabel || one.alt || one.title || one.textContent.trim() || one.labels?.[0]?.textContent.trim()))
  .map(one => one.outerHTML.slice(0, 100))"""
# Elements that reach beyond the right edge and do not scroll in themselves.
WIDE = """() => [...document.body.querySelectorAll("*")].filter(one => {
    const box = one.getBoundingClientRect();
    if (box.right <= innerWidth + 1 || box.left >= innerWidth || !one.checkVisibility() || box.width < 1) return false;
    for (let up = one.parentElement; up; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible") return false;
    return true;
  }).map(one => `${one.tagName}.${one.className} ${one.textContent.trim().slice(0, 40)}`)"""


def faults(page: Any) -> dict[str, list[str]]:
    """What is pale, too wide or without a name on the page as it is shown now."""
    found = {name: page.evaluate(script) for name, script in (("pale", PALE), ("wide", WIDE), ("unnamed", UNNAMED))}
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        found["wide"].append("the page scrolls sideways")
    return {name: found for name, found in found.items() if found}
