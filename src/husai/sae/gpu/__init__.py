"""Training steps on a CUDA device, in Triton.

A step goes through the files in this order: `select` finds the active latents of each row,
`reconstruct` decodes them, `dead` lets dead latents reconstruct what is left, `gradients` puts the
codes in the order of latents, and `update` adds up each latent's gradients and moves it. `codes`
launches the first and the fourth, `step` all of them; `plan` says beforehand which SAEs go
together, and which way.

The kernels do the arithmetic of :mod:`husai.sae.engines.dense`, which they are tested against in
Triton's interpreter; :mod:`husai.sae.engines.cuda` makes the steps. Sums are added up in an order
that does not depend on timing, so a step repeated on the same card gives the same bits. Shapes:
``n`` SAEs at once, ``F`` latents, ``d`` input width, ``B`` rows per batch, ``P`` nested prefixes (1
without nesting).
"""
