"""Claims about training, each a file: what was said, the plan that tests it, the criteria, what each outcome means."""

from bitnetctl.claims.claim import (
    Claim as Claim,
    Conclusions as Conclusions,
    claim_names as claim_names,
    load_claim as load_claim,
    parse_claim as parse_claim,
)
from bitnetctl.claims.judged import (
    JudgedClaim as JudgedClaim,
    Scale as Scale,
    departures as departures,
    design_hash as design_hash,
)
from bitnetctl.claims.looks import (
    Looks as Looks,
    count_elsewhere as count_elsewhere,
    looks_file as looks_file,
    read_looks as read_looks,
)
