"""One file is one paper: `build(spec, num_frames, **options)` returns its backbone, frozen as the recipe says."""
