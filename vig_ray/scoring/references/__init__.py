"""What each reference does to a prompt, one idea a file; `vig_ray.scoring.reference` knows them by name."""
