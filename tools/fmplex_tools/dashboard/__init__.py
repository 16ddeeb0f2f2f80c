"""``fmplex dashboard``: a live page of one machine or a fleet. What is shown is pure (`view`, `placement`, `history`);
`watch` looks at servers and fleets, `page` and `vfm_page` draw with NiceGUI."""
