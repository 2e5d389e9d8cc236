"""Training steps on a CUDA device, in Triton.

A step goes through the files in this order: `select` finds the active latents of each row,
`reconstruct` decodes them, `dead` lets dead latents reconstruct the residual, `gradients` sorts the
codes by latent, and `update` sums each latent's gradients and updates it. `codes` launches the
first and the fourth, `step` all of them; `plan` decides beforehand which SAEs are trained together,
and with which kernels.

The kernels compute the same as :mod:`husai.sae.engines.dense`, with which tests compare them in
Triton's interpreter; :mod:`husai.sae.engines.cuda` calls them. The order of sums does not depend on
timing, so a step repeated on the same card gives the same bits. Shapes:
``n`` SAEs at once, ``F`` latents, ``d`` input width, ``B`` rows per batch, ``P`` nested prefixes (1
without nesting).
"""
