// Wide tables scroll in a box of the theme's; a keyboard can reach it only if it takes the focus.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
      box.tabIndex = 0
    }
  })
)
