"""The FM host: intake, queue, engines, repository watch and replies of one physical FM. No torch, no Triton."""
