"""Shape aliases, the only file that writes shape strings.

B responses, T tokens of the longest response, P pairs (rows 2i chosen and 2i + 1 rejected), N tokens of a
packed row, D width of the hidden vectors, G rankings, K responses of the longest one, L numbers of a head or levels of
a scale, A annotators, W bytes.
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

TokenInt: TypeAlias = Int[Tensor, "B T"]
TokenFloat: TypeAlias = Float[Tensor, "B T"]
TokenBool: TypeAlias = Bool[Tensor, "B T"]
TokenBytes: TypeAlias = UInt8[Tensor, "B T W"]
RowInt: TypeAlias = Int[Tensor, " B"]
RowFloat: TypeAlias = Float[Tensor, " B"]
RowBool: TypeAlias = Bool[Tensor, " B"]
RankingFloat: TypeAlias = Float[Tensor, "G K"]
RankingBool: TypeAlias = Bool[Tensor, "G K"]
RankingInt: TypeAlias = Int[Tensor, "G K"]
GroupFloat: TypeAlias = Float[Tensor, " G"]
Levels: TypeAlias = Float[Tensor, " L"]
TokenLevels: TypeAlias = Float[Tensor, "B T L"]
RowLevels: TypeAlias = Float[Tensor, "B L"]
PairLevels: TypeAlias = Float[Tensor, "P L"]
PairFloat: TypeAlias = Float[Tensor, " P"]
PairInt: TypeAlias = Int[Tensor, " P"]
AnnotatorFloat: TypeAlias = Float[Tensor, " A"]
AnnotatorLevels: TypeAlias = Float[Tensor, "A L"]
FlatInt: TypeAlias = Int[Tensor, " N"]
FlatFloat: TypeAlias = Float[Tensor, " N"]
Hidden: TypeAlias = Float[Tensor, "N D"]
