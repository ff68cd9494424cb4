"""The classes of the label images of ADE20K, COCO-Stuff and Mapillary Vistas, by number."""

from __future__ import annotations

from typing import NamedTuple


class Classes(NamedTuple):
    """Names of the classes by number, and the numbers in label images that stand for no class, or for one too vague to ask for."""

    names: tuple[str, ...]
    ignored: frozenset[int]


def _split(names: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in names.split(";"))


ADE20K = Classes(
    _split(
        """
        unlabeled; wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door; table; mountain; plant;
        curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub;
        railing; cushion; base; box; column; signboard; chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs;
        runway; case; pool table; pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill; bench; countertop;
        stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel; bus; towel; light; truck; tower; chandelier; awning;
        streetlight; booth; television receiver; airplane; dirt track; apparel; pole; land; bannister; escalator; ottoman; bottle; buffet; poster; stage; van;
        ship; fountain; conveyer belt; canopy; washer; plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle; oven; ball;
        food; step; tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen; blanket; sculpture; hood; sconce; vase; traffic light; tray;
        ashcan; fan; pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag
        """
    ),
    frozenset({0, 255}),
)
"""150 classes from 1 on; 0 is unlabelled."""

COCO_STUFF = Classes(
    _split(
        """
        person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant; street sign; stop sign; parking meter; bench; bird;
        cat; dog; horse; sheep; cow; elephant; bear; zebra; giraffe; hat; backpack; umbrella; shoe; eye glasses; handbag; tie; suitcase; frisbee; skis;
        snowboard; sports ball; kite; baseball bat; baseball glove; skateboard; surfboard; tennis racket; bottle; plate; wine glass; cup; fork; knife; spoon;
        bowl; banana; apple; sandwich; orange; broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed; mirror; dining table; window;
        desk; toilet; door; tv; laptop; mouse; remote; keyboard; cell phone; microwave; oven; toaster; sink; refrigerator; blender; book; clock; vase;
        scissors; teddy bear; hair drier; toothbrush; hair brush; banner; blanket; branch; bridge; building-other; bush; cabinet; cage; cardboard; carpet;
        ceiling-other; ceiling-tile; cloth; clothes; clouds; counter; cupboard; curtain; desk-stuff; dirt; door-stuff; fence; floor-marble; floor-other;
        floor-stone; floor-tile; floor-wood; flower; fog; food-other; fruit; furniture-other; grass; gravel; ground-other; hill; house; leaves; light; mat;
        metal; mirror-stuff; moss; mountain; mud; napkin; net; paper; pavement; pillow; plant-other; plastic; platform; playingfield; railing; railroad;
        river; road; rock; roof; rug; salad; sand; sea; shelf; sky; skyscraper; snow; solid-other; stairs; stone; straw; structural-other; table; tent;
        textile-other; towel; tree; vegetable; wall-brick; wall-concrete; wall-other; wall-panel; wall-stone; wall-tile; wall-wood; water-other; waterdrops;
        window-blind; window-other; wood
        """
    ),
    frozenset(
        {0, 96, 102, 103, 110, 112, 114, 115, 116, 117, 118, 121, 123, 126, 133, 142, 160, 164, 167, 171, 172, 173, 174, 175, 176, 177, 178, 180, 181, 255}
    ),
)
"""182 classes from 0 on. The reference ignores number 0 (person) too. It may have taken it for the label of nothing, but its weights were trained so."""

MAPILLARY = Classes(
    _split(
        """
        bird; ground animal; ambiguous barrier; concrete block; curb; fence; guard rail; barrier; road median; road side; lane separator; temporary barrier;
        wall; bike lane; crosswalk - plain; curb cut; driveway; parking; parking aisle; pedestrian area; rail track; road; road shoulder; service lane;
        sidewalk; traffic island; bridge; building; garage; tunnel; person; person group; bicyclist; motorcyclist; other rider; lane marking - dashed line;
        lane marking - straight line; lane marking - zigzag line; lane marking - ambiguous; lane marking - arrow (left); lane marking - arrow (other); lane
        marking - arrow (right); lane marking - arrow (split left or straight); lane marking - arrow (split right or straight); lane marking - arrow
        (straight); lane marking - crosswalk; lane marking - give way (row); lane marking - give way (single); lane marking - hatched (chevron); lane marking
        - hatched (diagonal); lane marking - other; lane marking - stop line; lane marking - symbol (bicycle); lane marking - symbol (other); lane marking -
        text; lane marking (only) - dashed line; lane marking (only) - crosswalk; lane marking (only) - other; lane marking (only) - test; mountain; sand;
        sky; snow; terrain; vegetation; water; banner; bench; bike rack; catch basin; cctv camera; fire hydrant; junction box; mailbox; manhole; parking
        meter; phone booth; pothole; signage - advertisement; signage - ambiguous; signage - back; signage - information; signage - other; signage - store;
        street light; pole; pole group; traffic sign frame; utility pole; traffic cone; traffic light - general (single); traffic light - pedestrians; traffic
        light - general (upright); traffic light - general (horizontal); traffic light - cyclists; traffic light - other; traffic sign - ambiguous; traffic
        sign (back); traffic sign - direction (back); traffic sign - direction (front); traffic sign (front); traffic sign - parking; traffic sign - temporary
        (back); traffic sign - temporary (front); trash can; bicycle; boat; bus; car; caravan; motorcycle; on rails; other vehicle; trailer; truck; vehicle
        group; wheeled slow; water valve; car mount; dynamic; ego vehicle; ground; static
        """
    ),
    frozenset({123, 255}),
)
"""Mapillary Vistas 2.0."""
