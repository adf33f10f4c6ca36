// Evaluated in a page: for each visible piece of text [contrast by WCAG 2 against the colour painted behind it, what it is].
() => {
  const rgba = (text) => {
    const numbers = text.match(/[\d.]+/g).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    return [...numbers.slice(0, 3).map((x) => x * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const layers = [];
    for (let each = node; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const wanted = "h1, h2, h3, p, li, td, th, figcaption, span, dt, dd, pre, code, a, mjx-container";
  return [...document.querySelectorAll("article, .bd-sidebar-primary")]
    .flatMap((part) => [...part.querySelectorAll(wanted)])
    .filter((node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .filter((node) => (node.matches("mjx-container") || hasText(node)) && !node.matches(".headerlink"))
    .map((node) => {
      const ground = behind(node);
      const ink = over(rgba(getComputedStyle(node).color), ground);
      const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
      const what = `${node.tagName} ${node.className}: ${node.textContent.trim().slice(0, 40)}`;
      return [(high + 0.05) / (low + 0.05), what];
    });
}
