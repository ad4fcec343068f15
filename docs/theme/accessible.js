// What scrolls sideways can be scrolled with the keys, and the bars of code blocks have names.
function label() {
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((bar) => {
    const code = bar.closest("pre, .highlight");
    const blocks = [...document.querySelectorAll("pre")];
    bar.setAttribute("aria-label", `Code block ${blocks.findIndex((b) => code.contains(b) || b === code) + 1}`);
  });
  document.querySelectorAll("pre > code, .md-typeset__table, .md-typeset__scrollwrap, .md-typeset > table").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
  });
}
new MutationObserver(label).observe(document.documentElement, { childList: true, subtree: true });
addEventListener("load", label);
addEventListener("resize", label);
