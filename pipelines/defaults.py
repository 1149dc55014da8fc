"""What a run is given where nobody says otherwise, here and on Vertex."""

from typing import Final

__all__ = ["MEMBERS"]

#: Policies whose mean is served. One seed's policy may leave good signals alone and be rejected for it; four seldom do
#: so together (docs/training.md).
MEMBERS: Final = 4
