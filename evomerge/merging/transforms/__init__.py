"""Delta transforms: merge methods computed once, whose results are searched over as new parents.

Every built-in transform is listed here by hand, one line each; importing this package registers
them.
"""

from evomerge.merging.transforms import doge as doge
from evomerge.merging.transforms import iso_c as iso_c
from evomerge.merging.transforms import iso_cts as iso_cts
from evomerge.merging.transforms import knots as knots
from evomerge.merging.transforms import lora_lego as lora_lego
from evomerge.merging.transforms import low_rank as low_rank
from evomerge.merging.transforms import opcm as opcm
from evomerge.merging.transforms import opt_merge as opt_merge
from evomerge.merging.transforms import pcb as pcb
from evomerge.merging.transforms import r_tsvm as r_tsvm
from evomerge.merging.transforms import rmm as rmm
from evomerge.merging.transforms import tsv_m as tsv_m
from evomerge.merging.transforms import twin as twin
from evomerge.merging.transforms import widen as widen
from evomerge.merging.transforms import wudi as wudi
