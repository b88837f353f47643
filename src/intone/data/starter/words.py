"""The vocabulary: a core that stories, facts and templates use, and more words for spelling, counting and sorting."""

from intone.data.starter.item import is_held_out, listed

# words that templates, stories and facts use: never held out
CORE = listed(
    """
about above across after afternoon again again all along also always among animal animals another answer any anything
apple apples around asked autumn away baby back backwards bag ball banana bank barn basket bear beautiful because
become bed before began begin behind bell below beside best better between big bird birds black blanket blue boat
book books boots bottle bowl box boy bread breakfast bridge bright bring brother brought brown brush bucket build built
bus butter button buy cake call calm came camera can candle candles capital car card cards carried carry castle cat
catch chair cheese chicken child children church circle city clean clear climb clock close closed cloud clouds coat
coffee coin coins cold colour comb come compass cook cookie cool corn corner could count country cow cross cup curtain
dance dark daughter dear deep desert desk different dinner dish doctor does dog done door down draw dress drink drum
duck each early east easy eat egg eggs eight eleven empty end evening every everyone everything excited eyes
fall family far farm farmer fast father feel feels feet felt few field find finger fire first fish five flag floor
flower flowers fly foal follow food foot forest fork found four fox friend friends frog from front fruit full funny game
garage garden gate gave gentle gift girl give glad glass gloves goat gold good goodbye grass great green grey ground
guitar had hair half hall hammer hand hands happy hard has hat have head hear heard heart heavy hello help helped hen
here high hill hold home honey horse hospital hot hotel hour house how hundred hungry ice inside island jacket jam jar
jump just keep kettle key keys kind king kitchen kite kitten knee knife knew know ladder lake lamb lamp large last
late later laugh laughed leaf learn leave left lemon letter letters library life light like lion lips listen little live
lives long look looked lost loud love low lucky lunch made make many map market meal mean meat meet metal middle milk
minute mirror money monkey month months moon more morning mother mountain mouse mouth move moved much museum music
name near neck need needs neighbour nest never new news next nice night nine noise north nose nothing number numbers
office often old once one only open opposite orange other outside over owl page paint paper park party path peach pear
pen pencil people person phone piano picture pie pig pilot place plan plant plate play played please pocket pond
poor potato pretty proud pull puppy purple push put question quick quiet quite rabbit rain ran read ready red rest
rice rich right ring river road robe rock roof room rope round ruler run sad safe said salt sand sandwich saw scarf
school sea season second see seed seem seven shade sharp she sheep shelf shell ship shirt shoe shoes shop short shout
show shut shy side silver sing sister sit six skin sky sleep slow small smile smiled snow soap sock socks soft some
somebody something son song soon sound soup south space speak spell spoon sport spring square stairs stand star start
station stay step sticky still stone stop store storm story straight strange street string strong study such sugar
summer sun sunny suitcase sure surprised sweet swim table take taken tall tea teacher team teeth tell ten tent
than that theatre them then there these they thick thin thing things think thirsty this three through ticket tiger time
tired today together told tomorrow tool took tooth top towel tower town toy train tree truck true try turn two uncle
under until upstairs use useful usually vase very village violin visit voice wait walk walked wall wallet want warm
was wash watch water way weak wear weather week well went were west wet what wheel when where which while white who
whole why wide wild will wind window winter wise with without wolf woman wood wool word words work world worried would
write written wrong year years yellow yes yesterday young zoo attic balcony bakery basement bathroom bedroom cabin
cafe cave cellar classroom courtyard harbour hallway stable studio terrace workshop umbrella whistle torch
notebook necklace helmet puzzle pillow order carrot baker gardener miner shark pine snowman leather sweep silk stew
lonely playground pudding alphabetical dictionary spelling spelled mirror
"""
)

MORE = listed(
    """
acorn actor admiral airport album almond alphabet amber anchor angle ankle antelope anvil apricot apron arch archer
arena armchair armour arrow artist ashes aspen aster athlete atlas aunt avocado award badge badger bagel baker ballet
balloon bamboo bandage banjo banner barber barley barrel baseball basil basin beach bead beak beam bean beard beaver
beetle bench berry bicycle biscuit blade blaze blender blizzard block blossom blouse board bolt bonnet border bouquet
bracelet brain branch brass breeze brick bride broccoli bronze brook broom broth bubble buckle buffalo bugle bulb
bundle bunny bureau burger bush butcher butterfly cabbage cabinet cable cactus calendar camel campus canal canary
candy cannon canoe canvas canyon captain caramel caravan carbon cargo carnival carpenter carpet carriage carrot
carton cartoon cashew casino cattle cedar ceiling celery cement centre cereal chain chalk champion channel chapel
chapter charm chart cheetah cherry chess chest chestnut chimney chin chisel chocolate cinema cinnamon clam clarinet
claw clay clerk cliff clinic cloak cloth clove clover clown coach coal coast cobweb cocoa coconut collar college
column comet comic concert cone copper coral cork cotton couch cougar cousin cover cowboy coyote crab cradle crane
crater crayon cream creek cricket crocodile crow crown crumb crust crystal cube cucumber cupboard curry cushion
cymbal dagger dairy daisy dawn deer denim dentist diamond diary dice dinosaur diver dock doll dolphin dome domino
donkey dough dove dragon dragonfly drawer drill driver drizzle dune dust eagle earring earth easel echo eclipse
elbow elephant elevator elm emerald engine envelope eraser evergreen fabric factory falcon fame fan fawn feather
fence fern ferry festival fiddle fig filter finch flame flamingo flask flea fleet flood flour flute foam fog folder
forehead fountain fossil freezer freight fridge fringe frost fudge fungus funnel furnace gallery galaxy garlic gem
geyser ghost giant ginger giraffe glacier globe glove glue goblet goggles goose gorilla grain grape gravel gravy
griddle guard guest guide gull hail hamster hammock handle hanger hare harp harvest hatch hawk hazelnut hedge hedgehog
heel heron hinge hippo hockey holiday hood hoof hook horizon horn hornet hose hound hummus hunter hurricane iceberg
icicle igloo inch ink insect iron ivory ivy jaguar jasmine jeans jelly jellyfish jersey jewel jigsaw joker journal
judge juggler juice jungle kangaroo kayak kennel ketchup kidney kiosk kiwi knight knob knot koala label lace lagoon
lantern lasagna lava lavender lawn lawyer leather leek legend lemonade lens leopard lettuce lever lighthouse lily lime
linen lizard llama lobster lock locket locker locomotive log lollipop lotion lotus lumber lung lynx machine magazine
magic magnet magpie maid mango manor maple marble marigold marker marmalade marsh mask mast mattress mayor meadow
medal melon mermaid meteor microphone mill mineral mint mist mitten model mole moose mosaic mosquito moss motel moth
motor motorbike muffin mule muscle mushroom musician mussel mustard napkin needle nephew nettle niece noodle nurse nut
nutmeg oasis oatmeal ocean octopus olive onion opera orbit orchard orchid organ ostrich otter oven oyster package
paddle painter painting palace palm pancake panda panel panther papaya parade parcel parent parrot parsley parsnip
passenger passport pasta paste pastry patch paw pea peacock peanut pebble pedal pelican penguin pepper perfume petal
pheasant photo pickle pigeon pillar pine pineapple pint pipe pirate pistachio pitcher pizza plank planet plaster
plastic platform plum plumber poem poet pole police polo pony popcorn porch porridge port post poster powder prairie
present prince princess printer prize propeller pudding puddle pump pumpkin puppet purse pyramid quail quarry queen
quilt raccoon race racket radar radio radish raft railway rainbow raincoat raisin rake ranch raspberry rattle
raven razor recipe reef referee reindeer reptile restaurant rhino ribbon riddle rifle ripple robot rocket rose rowboat
rubber ruby rudder rug saddle sail sailor salad salmon sandal sapphire sardine satellite sauce saucer sausage saw
saxophone scale scallop scarecrow scientist scissors scooter score scorpion screen screw scroll sculptor seagull seal
seaweed secret servant sesame shadow shampoo shark shawl shed sheet sheriff shield shore shorts shoulder shovel
shower shrimp shuttle sidewalk signal silk singer sink siren skate skeleton ski skirt skull skunk slate sled sleeve
slice slide slipper slope sloth snail snake sneaker snowflake snowman soccer sofa soil soldier sole sparrow speaker
spear spider spinach spiral sponge spruce spur squash squid squirrel stadium stage stamp starfish statue steak steam
steel stem stew stick stomach stool stork stove straw strawberry stream stripe submarine subway suit sunflower sunset
surgeon swallow swan sweater swing sword syrup tablet tadpole tail tailor talent tangerine tank tape target tart taxi
teapot telescope temple tennis termite thimble thistle thorn thread throne thumb thunder tiara tile timber toad toast
toaster toilet tomato tongue topaz tornado tortoise toucan tractor traffic trail trailer tramp trapeze tray treasure
triangle tribe tricycle trombone trophy trousers trout trumpet trunk tuba tugboat tulip tuna tunnel turban turkey
turnip turtle twig typhoon uniform unicorn vacuum valley valve van vanilla vapour vault vegetable vehicle veil velvet
vest vine vinegar visitor volcano vulture waffle wagon waist waiter walnut walrus wand wardrobe warrior wasp waterfall
wave wax weasel wedding weed whale wheat wheelchair whisker widow willow windmill wing wizard wombat worm wreath
wrench wrist yacht yak yard yarn yogurt zebra zinc zipper
accident account activity address advice agent alarm album alley amount ancient angel angry ankle apron article aspect
attempt author average backpack bacon balance bargain barrier bathtub battery battle bedtime beginner belief
benefit berries blame blend bless blink blond bloom blush bonus boost bother bounce bounty brace brake brand brick
brief bright brisk bronze browse brunch bruise budget buggy bumpy burrow butler buyer cabbage camper captive career
careful carve catalog cause caution century ceremony chance change chapter charge chatter cheap cheer chef chill
chorus chunk cider cinder citizen clap clash classic clever climate cling clinic clip cloudy clue clumsy clutch
coarse coastal collect colony combine comfort command common compare compete complete compose concern conquer consider
contain contest control copy correct costume cottage council courage course crack craft crash crawl crazy create
credit creep crew crime crisp crop cruise crunch crush curious curl current curve custom cycle daily damage damp
dancer danger daring darling dash date deal debate decade decide deck decorate deed defend degree delay delight
deliver demand depart depend depth describe design detail develop device diagram diet direct discover distance divide
dizzy double doubt dozen drag drama dread dream drift drown dusk duty dwarf eager earn echo edge editor effort elect
elegant embrace emotion empire employ enemy energy engage enormous enter entire entrance equal erase error escape
essay estate event exact examine example exercise exit expand expect expert explain explore express extend extra
fable failure fair faithful fancy fantasy farewell fashion fault favour feast feature fellow fever fiction fierce
fight figure final finish firm fitness flash flavour flight float flock flow fluffy fluid flutter focus fold fond
forbid force foreign forever forgive form fortune forward frame freedom freeze frequent fresh fried frighten frown
frozen future gain gallop gamble gap gather general gesture giggle glance gleam glide glitter gloomy glory glow
govern grab grace grade grand grateful greedy greet grin grip grocery groom grow growl guess guilty gust habit
handful handy happen harm harsh haste haunt healthy heaven height heir hero hesitate hidden hinder hint history hobby
hollow homework honest honour hopeless horrible host huge human humble humour hunger hunt hurry hurt husband idea
ideal idle ignore image imagine improve include increase indoor infant inform injury inner innocent inspect instant
instead invent invite item jealous jingle join jolly journey joy judge juicy keen kick kindness kingdom kiss kneel
knit knock labour lack lady land landing language lantern lazy leader leaf league lean leap lecture lend lesson level
liberty lick lift limit limp linger link liquid list litter loaf loan lobby local lodge logic lonely loose lord lot
lower loyal lullaby lunar machine mail main major manage manner march marry master match matter mature measure melt
member memory mend mention mercy merit merry mess message method mighty mill mind miner minor miracle mischief miser
misty mixture modern modest moment monster mood moral motion motive mount muddy mumble murmur mystery myth narrow
nation native nature naughty neat nerve neutral nibble nickname nod nonsense normal notice novel nursery obey object
oblong observe obvious occur odd offer officer oily opinion option order ordinary organise origin outdoor outfit outline
owner pace pack pain pair pale parent parlour part partner pastime patient pattern pause pavement peace peel peer
perfect perform period permit pinch pioneer pity plain planner player playful plead pleasant pledge plenty plot plunge
poetry point polite polish popular portion portrait possible pour power praise prayer precious prefer prepare pretend
prevent price pride print private problem process produce profit program project promise proof proper protect prove
provide public pupil purpose puzzled quality quarter queue quiver quota quote rally random range rapid rare rate
reach react real realise reason rebel receive record recover reduce reflect refuse region regret regular rehearse relax
relief rely remain remark remind remote remove rent repair repeat replace reply report request rescue research
respect respond result retire return reveal reward rhyme rhythm ride ridge rinse ripe rise risk rival roar roast roll
rough route royal rude ruin rule rumour rural rush rusty safety salary sample satisfy scatter scene scent
scheme scholar science scold scrape scratch scream seat secure select sell send sense sentence serious serve service
settle several shake shallow shame shape share shave shelter shift shine shiny shiver shock shoot shrink shrug sigh
sight silent silly simple sincere single situation skill skip slam slap slender slim slip smart smash smell smoke
smooth snack sneeze snore social society solid solve sorrow sort spare spark special speech speed spend spice spill
spin spirit splash splendid split spread sprinkle squeeze stack staff stain stale stare state steady steep steer
stiff sting stir stitch storage stormy stout strange stranger strap stretch strict stride strike strip stroll struggle
stubborn student stumble stupid style subject succeed success sudden suffer suggest summit sunlight sunrise superb
supper supply support suppose surface surprise surround survive suspect swamp swap swarm sweep swell swift switch
symbol sympathy system tackle tangle task taste tasty teach tease temper tempt tender term terror test thank theme
theory thief thirst thorough thought thrill thrive throat throw thump tickle tidy tight timid tiny tired title tone
total touch tough tourist trace trade trap travel treat tremble trend trial trick trim trip trouble trust truth tumble
tunnel tutor twin twinkle twirl twist typical ugly unable unfair unique unite unity universe unusual upper urban urge
urgent usual vacant valid value vanish variety vast venture verse victory view vigour violet virtue vision visual
vital vivid volume voyage wage wake wander warn waste watchful wealth wealthy weapon weave weigh welcome whip whirl
whisper wicked width wiggle wildlife willing wink wipe wisdom wish witness wonder wooden worker worth worthy wound
wrap wrinkle yawn yell yield youth zealous zigzag zone
airplane aisle alley almond ambulance anthem antique arcade arrival ashtray atlas auburn awning axle backyard badminton
bagpipe ballroom barefoot barnyard beacon beehive beeswax beetroot billiards binder birdcage birthday
blackbird blackboard bluebell bluebird boathouse bobcat bodyguard bonfire bookcase bookmark bookshelf bootlace
bracken bramble breakwater briefcase broadcast buckwheat bulldog bullfrog buttercup buzzard cabaret campfire
candlelight cardboard cardigan carefree cartwheel catfish cauldron chaplain checkers chickpea chipmunk chopstick
clockwork clothing coastline cobbler cockatoo cockpit compost conductor coronet cornfield cottage courthouse cowbell
cranberry crayfish creature crossroad cufflink cupcake currant daffodil dandelion darkness daylight daytime deckchair
dewdrop dishcloth doorbell doormat doorstep doorway doughnut downhill downtown drainpipe drawing driftwood driveway
drumstick dustpan earmuff eggplant eggshell eyebrow eyelash farmhouse farmyard fireplace firewood fireworks
fishbowl fisherman flagpole flashlight flatbread floorboard flowerbed flowerpot footbridge footpath footprint footstep
foxglove freckle fruitcake gardener garland gazelle gemstone goldfinch grapefruit grassland greenhouse guesthouse
hailstone haircut hairbrush hairpin hallmark hamlet handbag handshake harness haystack headlight heater heather
hilltop honeycomb honeymoon horseback horseshoe hourglass household houseboat inkwell keyboard keyhole
landlord landmark landslide lapwing larder lemonade lifeboat lifeguard limestone lipstick lodging lookout lumberjack
magnolia mailbox mainland mallard meatball meerkat merchant midday midnight milkman milkshake millstone mongoose
moonbeam moonlight mulberry mustang narrator necktie newcomer nightfall nightgown nightmare notepad nutshell oatcake
offspring orangutan outback outlaw overcoat overpass paintbrush pamphlet parasol partridge passport patchwork pathway
paperclip peppermint periwinkle piccolo pinecone pineapple pinwheel playground playpen plaything poplar porcelain
porcupine postcard postman primrose prairie pullover pushchair quicksand raincloud raindrop rainfall rainstorm
reptile rooftop rooster rosebud rosemary rucksack runway saddlebag saltwater sandbox sandcastle sandpaper sandstone
sawdust scallion schoolbag schoolboy scooter seahorse seashell seashore seaside season seatbelt shepherd shipwreck
shipyard shoebox shoelace shopkeeper sideboard signpost skylark skylight skyscraper snapdragon snowball snowdrift
snowdrop snowfall snowstorm sombrero songbird soybean spaceship spacesuit spotlight springtime squirrel staircase
starlight steamboat stockings stonework stopwatch storybook stepladder suitcase sunbeam sundial sunglasses sunshade
sunshine surfboard swallow sweetcorn swimsuit tablespoon tailcoat tapestry teacup teammate teaspoon textbook
thicket threshold thumbtack tightrope timetable tiptoe tombola toolbox toothbrush toothpaste treadmill treetop
trinket trousers turnstile turquoise typewriter underwater uphill upland vineyard wallpaper warehouse warthog washcloth
watchmaker watchtower watermelon waterway wetland wheelhouse whirlpool whirlwind wildcat wildflower windscreen
windshield windsurfer wintertime wishbone woodland woodpecker woodwork workbench workshop worksheet yardstick yearbook
"""
)

WORDS = tuple(dict.fromkeys(CORE + MORE))

LONGEST_SPELLED = 10
_CORE = frozenset(CORE)
HELD_OUT_WORDS = tuple(
    word for word in MORE if word not in _CORE and 4 <= len(word) <= LONGEST_SPELLED and is_held_out(("word", word), 8)
)
_HELD_OUT = frozenset(HELD_OUT_WORDS)
TRAINING_WORDS = tuple(word for word in WORDS if 4 <= len(word) <= LONGEST_SPELLED and word not in _HELD_OUT)
