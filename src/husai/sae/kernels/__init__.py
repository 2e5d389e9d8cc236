"""Sparse training steps on the CPU, compiled by numba.

Past the encoder product a step needs only the active latents: ``k`` of ``d_sae`` per row. A step
goes through the files in this order: `select` lists the active latents of each row (`few` where
TopK keeps few of them), `reconstruct` decodes them (or `dense` does both with dense products, where
many latents are active), `dead` lets dead latents reconstruct what is left, `gradients` sorts the
entries by latent and adds up each latent's gradient, `adam` updates it, and `step` does the last
two while the latent is in cache. SAEs that fit in cache decode and add up gradients row by row, in
`sums`. `types` names the arrays that travel together, and `vectors` has the operations that numba
does not find.

The kernels do the arithmetic of :mod:`husai.sae.engines.dense`, which they are tested against;
:mod:`husai.sae.engines.sparse` calls them. Each works on one SAE, on one thread, and releases the
GIL, so the result depends neither on the timing of threads nor on the other SAEs of a bank.
Shapes: ``F`` latents, ``d`` input width, ``B`` rows per batch, ``P`` nested prefixes (1 without
nesting).
"""
