"""The vocabulary of the bundled sample: a small streaming library, ten categories of four themes each, four tones."""

from typing import Final, NamedTuple


class Theme(NamedTuple):
    """
    What a story of one theme is made of; one phrase of each kind makes a synopsis.

    Attributes
    ----------
    name
        Name of the theme.
    nouns
        Heads of titles, in title case.
    leads
        Who it is about, "a retired locksmith".
    pursuits
        What they do, "tries to open a vault ...", to follow a lead.
    details
        Whole sentences that belong to no other theme.
    """

    name: str
    nouns: tuple[str, ...]
    leads: tuple[str, ...]
    pursuits: tuple[str, ...]
    details: tuple[str, ...]


THEMES: Final[dict[str, tuple[Theme, ...]]] = {
    "Mystery": (
        Theme(
            "locked rooms",
            ("Locked Room", "Seventh Key", "Sealed Vault", "Bolted Door", "Keyhole"),
            ("a retired locksmith", "a hotel detective", "an insurance investigator", "a night porter"),
            (
                "has one night to explain a murder in a room bolted from the inside",
                "tries to learn who emptied a vault that was never opened",
                "counts the keys of a shuttered hotel and finds one too many",
                "reopens the case of a victim who locked the door after dying",
            ),
            (
                "The only clue is a candle that burned down from the wrong end.",
                "Every suspect was seen in the corridor, and every suspect is telling the truth.",
                "The window was painted shut in 1911, and the paint is still wet.",
                "Somebody has oiled the hinges of a door that leads nowhere.",
            ),
        ),
        Theme(
            "art forgery",
            ("Forged Portrait", "Second Canvas", "Varnish", "Counterfeit Saint", "Empty Frame"),
            ("a museum restorer", "an auction house clerk", "a reformed forger", "a curator with a secret"),
            (
                "finds a stolen masterpiece underneath a worthless painting",
                "must prove that a celebrated portrait is a fake before the auction ends",
                "traces a ring of forgers through the paint under a fingernail",
                "recognises a brushstroke that should have died with the painter",
            ),
            (
                "The signature is perfect, which is exactly what is wrong with it.",
                "Two museums own the original, and neither is lying.",
                "The pigment was not invented until a century later.",
                "A thief keeps breaking into the gallery to return paintings.",
            ),
        ),
        Theme(
            "small-town secrets",
            ("Quiet Parish", "Village Well", "Unsent Letter", "Church Fête", "Missing Postmaster"),
            ("a village constable", "a district nurse", "a local newspaper editor", "a retired schoolteacher"),
            (
                "asks one question too many about a neighbour who vanished in the flood year",
                "opens a letter delivered forty years late and unsettles the whole village",
                "suspects that everyone on the street is hiding the same alibi",
                "digs up the parish garden and finds a bicycle nobody reported missing",
            ),
            (
                "In a town this small, the gossip arrives before the crime.",
                "The prize marrow is the least of what is buried in the allotment.",
                "The church bell rang thirteen times that night, and the vicar denies it.",
                "Everyone has a casserole, and everyone has a motive.",
            ),
        ),
        Theme(
            "cold cases",
            ("Cold File", "Unclaimed Evidence", "Last Witness", "Archive Box", "Reopened Case"),
            ("a police archivist", "a suspended inspector", "a forensic sketch artist", "a true-crime podcaster"),
            (
                "reopens an unsolved disappearance after a new witness calls from a dead line",
                "matches a fingerprint from last week to a murder thirty years old",
                "finds an evidence box that was signed out by the victim",
                "interviews the detective who closed the case and then stopped sleeping",
            ),
            (
                "The case file is missing one page, always the same one.",
                "The confession was real; the crime it described was not.",
                "A cassette tape in the evidence room has been recorded over twice.",
                "The prime suspect has been waiting three decades to be asked.",
            ),
        ),
    ),
    "Space": (
        Theme(
            "generation ships",
            ("Long Voyage", "Ark", "Hull Garden", "Ninth Generation", "Slow Ship"),
            ("a ship's botanist", "the last navigator aboard", "a cradle-deck teacher", "a young hull mechanic"),
            (
                "discovers that the colony ship turned around a hundred years ago",
                "must wake the sleeping crew before the farm decks fail",
                "keeps the only paper map of a starship the size of a city",
                "is elected captain of a vessel that no living person has seen from outside",
            ),
            (
                "Nobody aboard has ever felt rain, and tonight the ceiling is dripping.",
                "The destination star has started to blink.",
                "The ship's computer has begun to address everyone as an ancestor.",
                "There are eleven airlocks on the plans and twelve along the hull.",
            ),
        ),
        Theme(
            "first contact",
            ("First Signal", "Silent Visitor", "Answering Star", "Listening Post", "Radio Dark"),
            (
                "a radio astronomer",
                "a sign-language interpreter",
                "a navy linguist",
                "a night-shift telescope operator",
            ),
            (
                "decodes an alien signal that turns out to be a question",
                "has nine days to teach grammar to a visitor without a mouth",
                "hears an extraterrestrial lullaby in the noise of a dying satellite",
                "is chosen by an orbiting object that will speak to no one else",
            ),
            (
                "The message repeats every eleven hours and is getting shorter.",
                "The visitors understand every word except the word for war.",
                "Every telescope on Earth has turned to the same empty patch of sky.",
                "The reply was sent before the greeting arrived.",
            ),
        ),
        Theme(
            "mars settlers",
            ("Red Orchard", "Dust Season", "Martian Winter", "Crater Town", "Pressure Door"),
            ("a greenhouse engineer", "a Martian midwife", "a rover mechanic", "the settlement's only judge"),
            (
                "fights to keep the first orchard on Mars alive through a dust storm",
                "leads a strike in a mining dome where even the air is on the payroll",
                "drives a failing rover across the red desert with a newborn aboard",
                "must decide who leaves Mars on the last shuttle home",
            ),
            (
                "The colony has water for thirty days and rumours for sixty.",
                "On Mars the sunsets are blue, and so is everybody by winter.",
                "The dome has a crack as long as a hand and growing.",
                "A letter from Earth takes twenty minutes, an answer takes a lifetime.",
            ),
        ),
        Theme(
            "derelict stations",
            ("Derelict", "Dead Orbit", "Salvage Run", "Station Nine", "Airlock"),
            ("a salvage pilot", "a disgraced astronaut", "a zero-gravity welder", "an orbital insurance adjuster"),
            (
                "boards an abandoned space station and finds the lights on and dinner warm",
                "answers a distress call recorded by a crew that never flew",
                "tows a dead satellite that keeps correcting its course",
                "must cross a spinning wreck with one tank of oxygen and a talkative robot",
            ),
            (
                "The logbook is in the pilot's own handwriting.",
                "Something has been tending the plants in the empty module.",
                "The orbit decays in six hours, and the airlock code has changed.",
                "Fourteen spacesuits hang in the bay, one of them still breathing.",
            ),
        ),
    ),
    "Cooking": (
        Theme(
            "bread and pastry",
            ("Sourdough", "Morning Loaf", "Butter and Salt", "Oven Light", "Flour Mill"),
            ("a village baker", "a pastry apprentice", "a stubborn miller", "a former banker turned baker"),
            (
                "revives a century-old sourdough starter and the bakery that lost it",
                "bakes through the night to win back a grandmother's corner shop",
                "learns to laminate croissants from a master who refuses to measure",
                "crosses the country with a wood-fired oven on a trailer",
            ),
            (
                "There are four ingredients, and patience is three of them.",
                "The crust sings when it cools, and the whole street comes to listen.",
                "Each episode ends with a recipe simple enough for a Sunday kitchen.",
                "The secret of the brioche is written on the back of a tram ticket.",
            ),
        ),
        Theme(
            "street food",
            ("Night Market", "Noodle Cart", "Charcoal Smoke", "Dumpling Alley", "Paper Plate"),
            ("a noodle vendor", "a food-truck rookie", "a market inspector", "a cook without a restaurant"),
            (
                "guards a dumpling recipe against a chain that wants the whole alley",
                "eats through one night market from the first skewer to the last spoon",
                "opens a taco cart outside the restaurant that fired the whole family",
                "learns forty street dishes from forty grandmothers in forty days",
            ),
            (
                "The queue is two hours long and worth three.",
                "The chilli oil has no label, only a warning.",
                "Everything costs a coin, is served in paper and is eaten standing up.",
                "The best cook on the street is nine years old.",
            ),
        ),
        Theme(
            "restaurant kitchens",
            ("Dinner Service", "Copper Pan", "Last Table", "Head Chef", "Tasting Menu"),
            (
                "a burned-out head chef",
                "a dishwasher with a perfect palate",
                "a sous-chef",
                "a feared restaurant critic",
            ),
            (
                "has one dinner service to save a restaurant that is already sold",
                "runs a kitchen brigade through the worst Saturday of the year",
                "cooks a tasting menu from memory after losing the sense of smell",
                "takes over a failing bistro and its furious kitchen staff",
            ),
            (
                "Table nine has sent back everything, including the water.",
                "The stockpot has not been off the stove since 1987.",
                "The inspector, the critic and the landlord are all booked for eight.",
                "Someone keeps leaving perfect sauces in the staff fridge, unsigned.",
            ),
        ),
        Theme(
            "family recipes",
            ("Recipe Box", "Sunday Table", "Grandmother's Ladle", "Pickle Jar", "Inherited Spoon"),
            ("a grieving daughter", "a homesick student", "a grandfather who never cooked", "an estranged cousin"),
            (
                "cooks every card in a late mother's recipe box, one Sunday at a time",
                "tries to reconstruct a family stew from a stain on an apron",
                "sets one long table for relatives who have not spoken since the wedding",
                "learns to pickle, ferment and forgive in a borrowed kitchen",
            ),
            (
                "Every recipe ends with the same instruction: enough.",
                "The missing spice turns out to be a person.",
                "No one agrees about the dumplings, and that is the point.",
                "Measurements are given in cups, pinches and arguments.",
            ),
        ),
    ),
    "Nature": (
        Theme(
            "deep ocean",
            ("Deep Water", "Whale Road", "Coral Garden", "Trench", "Lantern Fish"),
            ("a marine biologist", "a free diver", "a submarine pilot", "a whale listener"),
            (
                "follows one blue whale from polar ice to the warm lagoons",
                "descends to an ocean trench where the fish make their own light",
                "replants a dying coral reef by hand, branch by branch",
                "records the songs of whales and finds a new dialect",
            ),
            (
                "At four thousand metres even the snow is alive.",
                "An octopus watches back, and takes notes.",
                "The reef spawns on a single night, under a single moon.",
                "Filmed over three years on one very patient boat.",
            ),
        ),
        Theme(
            "forests",
            ("Old Forest", "Root and Branch", "Canopy", "Mushroom Year", "Beech Wood"),
            ("a forest ranger", "a mycologist", "a canopy climber", "a charcoal burner's daughter"),
            (
                "spends four seasons with a single oak and everything that lives in it",
                "maps the fungal threads by which trees feed their neighbours",
                "climbs the tallest canopy on the continent to count what nobody has named",
                "guards the last old-growth forest from a road that is already drawn",
            ),
            (
                "A jay plants more oaks than the forestry office.",
                "The forest floor breathes, and here you can hear it.",
                "Under one footprint there are three hundred miles of fungus.",
                "The oldest tree in the wood is hollow, and fully let.",
            ),
        ),
        Theme(
            "birds",
            ("Migration", "Heron Lake", "Swift Summer", "Feather Atlas", "Dawn Chorus"),
            ("a bird ringer", "a lighthouse ornithologist", "a falconer", "an amateur birdwatcher"),
            (
                "follows the cranes on their migration in a glider built at home",
                "waits eleven weeks in a hide for an owl thought to be extinct",
                "records the dawn chorus of a valley before the motorway opens",
                "raises a rejected falcon chick in a city flat",
            ),
            (
                "An arctic tern sees more daylight than any other creature alive.",
                "The starlings write on the evening sky, and no two pages are alike.",
                "The nest weighs as much as a letter and has survived two storms.",
                "A blackbird has learned the ringtone of the neighbours.",
            ),
        ),
        Theme(
            "big cats and savannah",
            ("Lion Country", "Dry Season", "Leopard Rock", "Waterhole", "Long Grass"),
            ("a wildlife camerawoman", "a veterinary ranger", "a Maasai tracker", "a retired poacher"),
            (
                "tracks a leopard mother through the driest season on record",
                "stays with one lion pride from the first hunt to the new king",
                "moves a herd of elephants past three villages in one night",
                "watches a single waterhole for a hundred days and nights",
            ),
            (
                "The cubs have a month to learn what the grass already knows.",
                "The drought makes neighbours of hunters and hunted.",
                "A hyena laughs last, and with good reason.",
                "The matriarch remembers a river that is no longer on the map.",
            ),
        ),
    ),
    "History": (
        Theme(
            "ancient empires",
            ("Bronze Throne", "Fallen Empire", "Clay Tablet", "Emperor's Road", "Marble City"),
            ("an archaeologist", "a palace scribe", "a freed gladiator", "a decoder of dead languages"),
            (
                "reads a clay tablet that complains about a delivery of copper",
                "uncovers a Roman road under a supermarket car park",
                "serves three emperors in a single year and outlives them all",
                "rebuilds the fall of a bronze-age city from one burned kitchen",
            ),
            (
                "The aqueduct still carries water, two thousand years late on its taxes.",
                "The pharaoh's shopping list is longer than his laws.",
                "An empire is a post office with an army.",
                "The tomb was empty, swept and locked from within.",
            ),
        ),
        Theme(
            "sea voyages",
            ("Ship's Log", "Unknown Coast", "Whaling Station", "Compass Rose", "Spice Fleet"),
            ("a ship's surgeon", "a stowaway cartographer", "a mutinous cook", "a maritime historian"),
            (
                "sails with a spice fleet whose captain has lost the chart and told nobody",
                "keeps a frozen expedition alive through two polar winters",
                "draws the first map of a coast that does not want to be found",
                "pieces together a mutiny from three contradicting logbooks",
            ),
            (
                "The biscuits moved, so they were called fresh.",
                "There are forty men, one lemon and a long way home.",
                "The compass points to the captain's cabin.",
                "The wreck lies in shallow water, exactly where nobody looked.",
            ),
        ),
        Theme(
            "wartime homefronts",
            ("Blackout", "Ration Book", "Codebreaker's Hut", "Evacuee", "Victory Garden"),
            ("a teenage codebreaker", "an evacuated schoolboy", "a factory foreman", "a volunteer ambulance driver"),
            (
                "breaks an enemy cipher and may not tell the man it would save",
                "keeps a bombed street fed out of one allotment and a bathtub",
                "carries messages across an occupied city inside loaves of bread",
                "builds aircraft by night and a life by day, on rations",
            ),
            (
                "The sirens start at nine, and the dance at half past.",
                "One sugar ration has to make three wedding cakes.",
                "The letters from the front are cut to lace by the censor.",
                "The piano in the shelter has eleven keys left and every one is needed.",
            ),
        ),
        Theme(
            "inventors and industry",
            ("Steam Engine", "Patent Office", "Glass Lightbulb", "Iron Bridge", "Telegraph"),
            ("a self-taught engineer", "a patent clerk", "a mill girl", "a bankrupt inventor"),
            (
                "builds the first iron bridge over a river that has drowned three wooden ones",
                "races a rival to the patent office with a lamp still warm",
                "lays a telegraph cable across an ocean that breaks it twice",
                "leads the weavers against the machine that will replace them",
            ),
            (
                "The prototype explodes politely, and always before lunch.",
                "Every cog in the film was cast from the original drawings.",
                "The factory whistle is the loudest character in town.",
                "The invention works; it is the inventor who does not.",
            ),
        ),
    ),
    "Romance": (
        Theme(
            "second chances",
            ("Second Spring", "Return Ticket", "Old Flame", "Late Bloom", "Unfinished Waltz"),
            ("a widowed florist", "a divorced music teacher", "a pilot home for good", "a novelist without an ending"),
            (
                "meets a first love again at the wedding of their children",
                "inherits half a house, and the other half belongs to an old flame",
                "answers a love letter twenty years after it was written",
                "takes dancing lessons and is paired with a former fiancé",
            ),
            (
                "They have one summer and a leaking roof between them.",
                "The apology is short; it was the courage that took years.",
                "Some hearts are not broken, only badly filed.",
                "The last dance is a waltz, and nobody has forgotten the steps.",
            ),
        ),
        Theme(
            "enemies to lovers",
            ("Rival Hearts", "Rented Villa", "Truce", "Opposing Counsel", "Shared Umbrella"),
            ("a divorce lawyer", "a wedding planner", "an uptight accountant", "a sharp-tongued columnist"),
            (
                "is snowed in with the one rival no reasonable person could love",
                "agrees to a fake engagement with the competition across the street",
                "must share a desk, a deadline and finally an umbrella with a sworn enemy",
                "loses a bet, keeps a promise and falls for the opposing counsel",
            ),
            (
                "They agree on nothing, least of all on who kissed whom.",
                "The contract has a clause against feelings, in small print.",
                "The arguments are so good that the neighbours have started to attend.",
                "Hate at first sight is only the opening offer.",
            ),
        ),
        Theme(
            "love by letter",
            ("Paper Hearts", "Love Letters", "Wrong Address", "Postcard Summer", "Blue Envelope"),
            ("a shy postal worker", "a bookshop owner", "a lighthouse keeper", "a translator of poetry"),
            (
                "falls for a stranger through letters left in a library book",
                "delivers a misaddressed love letter in person, again and again",
                "writes to a pen friend who lives, it turns out, one floor below",
                "translates the love poems of a rival and cannot keep them straight",
            ),
            (
                "Every envelope smells faintly of oranges.",
                "The handwriting is terrible, the sentences are not.",
                "It takes a hundred postcards to say three words.",
                "They have never met, and they already miss each other.",
            ),
        ),
        Theme(
            "city romances",
            ("Last Tram", "Rooftop Summer", "Corner Café", "Midnight Bridge", "Two Keys"),
            ("a tram driver", "a jazz-bar waitress", "a young architect", "a taxi driver with a notebook"),
            (
                "sees the same passenger every evening and finally misses a stop",
                "spends one night walking the city with a stranger who leaves at dawn",
                "swaps flats for a summer and falls for the owner's handwriting",
                "keeps meeting the same person on the wrong dates",
            ),
            (
                "The city is the third person in every conversation.",
                "They fall in love between two stops of the last tram.",
                "The rooftop has one deckchair and a view of everything.",
                "The café closes at ten, except for two people.",
            ),
        ),
    ),
    "Adventure": (
        Theme(
            "mountains",
            ("North Face", "Summit", "Rope Team", "Glacier", "Avalanche Line"),
            ("a mountain guide", "a Sherpa's daughter", "a rescue pilot", "an over-confident climber"),
            (
                "leads a rope team up a north face that has no second descent",
                "returns to the glacier that gave back everything but a brother",
                "climbs eight summits in eight weeks with a borrowed ice axe",
                "must bring down five strangers before the weather closes the pass",
            ),
            (
                "Above the last camp, every decision costs a breath.",
                "The mountain does not care, which is a kind of honesty.",
                "The rope holds; the friendship may not.",
                "The summit photograph shows one climber too many.",
            ),
        ),
        Theme(
            "lost treasure",
            ("Sunken Gold", "Pirate Chart", "Jungle Temple", "Jade Idol", "Smuggler's Cove"),
            ("a treasure diver", "a disgraced professor", "a map thief", "a smuggler's granddaughter"),
            (
                "follows half a pirate chart into a cove that is on no other map",
                "races two rivals and a flood to a temple under the jungle",
                "dives for a galleon's gold and raises something that was thrown overboard",
                "steals a jade idol and spends the film trying to give it back",
            ),
            (
                "The map is real, only the island is missing.",
                "Every lock opens with a riddle, and every riddle has teeth.",
                "The treasure was never gold, although there is also gold.",
                "The curse is nonsense, as each victim has pointed out.",
            ),
        ),
        Theme(
            "desert crossings",
            ("Caravan", "Salt Road", "Oasis", "Dune Sea", "Camel Post"),
            ("a caravan master", "a rally driver", "a water diviner", "a cartographer of dunes"),
            (
                "crosses a desert with forty camels and water for thirty",
                "drives a rally car along a salt road that moves with the wind",
                "searches for an oasis that only thirsty people have seen",
                "carries medicine across the dunes by starlight alone",
            ),
            (
                "By noon the horizon is a rumour.",
                "The well is where the map says; so is the ambush.",
                "Sand remembers nothing, and that is its charm.",
                "Here the stars are so low that people lower their voices.",
            ),
        ),
        Theme(
            "survival at sea",
            ("Life Raft", "Storm Front", "Open Boat", "Ninth Wave", "Driftwood Island"),
            ("a solo yachtswoman", "a teenage deckhand", "a trawler captain", "a shipwrecked accountant"),
            (
                "drifts for sixty days in a life raft with a pencil and a fishhook",
                "sails a broken yacht around the cape in the worst storm of the decade",
                "builds a life on an island of driftwood, then sees a sail",
                "keeps a trawler afloat while the crew votes on turning back",
            ),
            (
                "The radio works perfectly; there is nobody to hear it.",
                "The sharks keep office hours.",
                "Rainwater, rope and routine: the rest is luck.",
                "The lighthouse went dark on the one night it mattered.",
            ),
        ),
    ),
    "Music": (
        Theme(
            "jazz clubs",
            ("Blue Note", "Midnight Set", "Smoky Trumpet", "Basement Club", "Brushed Drums"),
            ("a jazz pianist", "a trumpet player with a cracked lip", "a club owner", "a bass player for hire"),
            (
                "has one week to keep a basement jazz club from becoming a car park",
                "joins a quartet whose drummer never plays the same song",
                "chases the perfect improvised solo through one sleepless night",
                "finds the lost tapes of a legendary jazz session",
            ),
            (
                "The solo lasts eleven minutes and changes three lives.",
                "The saxophone is pawned on Mondays and redeemed on Fridays.",
                "The best note of the evening is the one left out.",
                "The piano is out of tune in exactly the right places.",
            ),
        ),
        Theme(
            "orchestras",
            ("Opening Night", "First Violin", "Conductor's Baton", "Cello Suite", "Unfinished Symphony"),
            ("a second violinist", "a deaf conductor", "a prodigy cellist", "the orchestra's librarian"),
            (
                "must conduct an unfinished symphony with its last page missing",
                "auditions behind a curtain for the orchestra that once said no",
                "repairs a cello that survived a shipwreck and a marriage",
                "holds a mutinous orchestra together until opening night",
            ),
            (
                "The rehearsal is a war in four movements.",
                "The oboe gives the A, and the trouble starts.",
                "Filmed from inside the string section.",
                "The concert hall burns down in the interval, politely, after the applause.",
            ),
        ),
        Theme(
            "garage bands",
            ("Garage Tapes", "Feedback", "Battle of the Bands", "Tour Van", "Three Chords"),
            ("a teenage drummer", "a washed-up punk singer", "a roadie with a song", "a bass-playing nun"),
            (
                "forms a garage band with the three people nobody else picked",
                "drives a dying tour van to one last festival",
                "writes a punk anthem by accident and has to live up to it",
                "reunites a band that broke up over a sandwich",
            ),
            (
                "They know three chords and mean all of them.",
                "The amplifier catches fire in the second verse, and it helps.",
                "The demo tape was recorded in a laundry room, between cycles.",
                "The crowd is nine people, and they will all start bands.",
            ),
        ),
        Theme(
            "folk songs",
            ("Fiddle Tune", "Ballad", "Harvest Song", "Travelling Choir", "Wooden Flute"),
            ("a song collector", "a travelling fiddler", "the last singer of a dialect", "a village choir leader"),
            (
                "walks from village to village to record ballads before they are gone",
                "inherits a fiddle and the two hundred tunes that belong to it",
                "teaches a choir of shepherds a song in a language nobody speaks",
                "follows one folk melody across five borders and four names",
            ),
            (
                "The same tune is a lullaby here and a battle song over the hill.",
                "Nobody wrote the song, and everyone corrects you.",
                "The verses about the miller had to be cut for time and decency.",
                "Field recordings from kitchens, boats and one confession box.",
            ),
        ),
    ),
    "Craft": (
        Theme(
            "woodworking",
            ("Dovetail", "Workbench", "Walnut Chair", "Boatbuilder", "Spoon Carver"),
            ("a furniture maker", "a boatbuilder", "a retired carpenter", "a spoon-carving office worker"),
            (
                "builds a wooden boat from a tree that fell in the garden",
                "restores a walnut chair and the marriage it belonged to",
                "teaches dovetail joints to six beginners and one sceptic",
                "carves one spoon a day for a year, with hand tools only",
            ),
            (
                "No music and no hurry, only the sound of a sharp plane.",
                "The grain decides, the maker negotiates.",
                "Sawdust gets everywhere, including the plot.",
                "Measured twice, cut once, regretted never.",
            ),
        ),
        Theme(
            "textiles",
            ("Indigo", "Loom", "Patchwork Quilt", "Knitting Circle", "Silk Thread"),
            ("a weaver", "a costume maker", "a shepherd who knits", "an indigo dyer"),
            (
                "follows a single fleece from sheep to loom to sweater",
                "sews forty period costumes in the week before the premiere",
                "stitches a quilt from the shirts of a whole fishing village",
                "revives a natural indigo vat that went silent in the war",
            ),
            (
                "A dropped stitch in the first row returns in the last.",
                "The dye bath smells of the sea and of mild regret.",
                "Every pattern is a letter to somebody's granddaughter.",
                "The knitting circle knows everything and casts off nothing.",
            ),
        ),
        Theme(
            "pottery",
            ("Kiln", "Glaze", "Porcelain Bowl", "Wheel", "Cracked Teacup"),
            ("a studio potter", "a porcelain painter", "a clay digger", "a ceramics teacher"),
            (
                "fires a wood kiln for five days and five nights without sleep",
                "searches for the recipe of a lost celadon glaze",
                "throws a thousand bowls to make one that is finished",
                "mends broken porcelain with gold, and a few people with tea",
            ),
            (
                "The kiln opens on Sunday, and nobody breathes.",
                "The crack is the most expensive part of the cup.",
                "Clay remembers every hesitation of the hand.",
                "Nine pots in ten come out wrong; this film is about the tenth.",
            ),
        ),
        Theme(
            "watches and machines",
            ("Escapement", "Clockmaker", "Brass Gear", "Automaton", "Pocket Watch"),
            ("a watchmaker", "a clock-tower keeper", "an automaton restorer", "a typewriter mechanic"),
            (
                "repairs a pocket watch that has run backwards since its owner left",
                "rebuilds a drawing automaton to see what it was last asked to draw",
                "keeps the town clock right with a feather and a drop of oil",
                "restores a box of typewriters and the letters stuck inside them",
            ),
            (
                "The smallest screw in the film is lost in the first minute.",
                "Three hundred parts on a white cloth, and one left over.",
                "It ticks again, and the room goes quiet.",
                "Tweezers, brass, patience, and a very good lamp.",
            ),
        ),
    ),
    "Travel": (
        Theme(
            "rail journeys",
            ("Night Train", "Branch Line", "Sleeper Car", "Border Station", "Dining Car"),
            ("a sleeper-car steward", "a railway photographer", "a commuter who stayed aboard", "a retired signalman"),
            (
                "rides the slowest train on the continent to its very last station",
                "crosses six borders in one sleeper compartment with a snoring poet",
                "visits the branch lines that will close at the end of the year",
                "takes the night train in the wrong direction and decides to stay on it",
            ),
            (
                "The best view is from the corridor, in socks.",
                "The timetable is a work of fiction, lovingly revised.",
                "The soup in the dining car has its own following.",
                "Every station clock is wrong in its own dialect.",
            ),
        ),
        Theme(
            "island life",
            ("Island Post", "Ferry Day", "Lagoon", "Harbour Year", "Outer Isles"),
            ("a ferry captain", "an island doctor", "a postwoman with a rowing boat", "a newcomer from the city"),
            (
                "moves to an island of ninety people and one opinion",
                "delivers the post by rowing boat between eleven islands",
                "spends a year on an atoll that is two metres high",
                "keeps the ferry running through the winter storms",
            ),
            (
                "The shop opens when the boat comes in, if the boat comes in.",
                "The island has one road, and two people who are not speaking on it.",
                "At low tide the neighbours walk over for coffee.",
                "The weather forecast is the evening entertainment.",
            ),
        ),
        Theme(
            "walking and cycling",
            ("Long Path", "Pilgrim Road", "Bicycle Summer", "Coastal Walk", "High Pass"),
            ("a reluctant pilgrim", "a bicycle courier", "a hiking widower", "a newly retired cyclist"),
            (
                "walks eight hundred kilometres of pilgrim road in the wrong shoes",
                "cycles from one end of the country to the other on a folding bike",
                "follows the coast on foot, keeping the sea on the left hand",
                "crosses the high passes by bicycle with a tent and a kazoo",
            ),
            (
                "The blisters are described in detail, the views even more so.",
                "Every hill is followed by a cake.",
                "Strangers give directions, supper and once a donkey.",
                "It rains on the third day, and then the trip begins.",
            ),
        ),
        Theme(
            "great cities",
            ("Old Quarter", "City Guide", "Bazaar", "Metro Map", "Rooftops"),
            ("a blind city guide", "a night-bus driver", "a homesick diplomat", "an urban sketcher"),
            (
                "draws every street of the old quarter before it changes",
                "shows a capital city by its sounds, smells and staircases",
                "rides each metro line to the end and eats whatever is there",
                "gets lost in a bazaar on purpose, guided by a tea boy",
            ),
            (
                "The guidebook is forty years old and still right about the soup.",
                "Eleven million people live here, and one of them has the key.",
                "The city wakes twice, for prayers and for traffic.",
                "The rooftops have their own streets, and their own manners.",
            ),
        ),
    ),
}

TONES: Final[dict[str, tuple[str, ...]]] = {
    "gentle": (
        "A gentle, unhurried film for a quiet evening.",
        "Warm, kind and slower than the kettle.",
        "Nothing much happens, beautifully.",
        "Soft-spoken and tender to the last scene.",
        "A comforting watch, best under a blanket.",
    ),
    "tense": (
        "A tense, sleepless thriller that tightens with every scene.",
        "The suspense is quiet, exact and merciless.",
        "Gripping from the first minute, and darker after that.",
        "Edge-of-the-seat nerves, with a finale to be watched standing.",
        "Taut, dangerous and impossible to pause.",
    ),
    "funny": (
        "A dry comedy with a straight face.",
        "Very funny, and a little ashamed of it.",
        "Played for laughs, and it gets every one of them.",
        "A farce with excellent timing and terrible decisions.",
        "Witty, quick and cheerfully absurd.",
    ),
    "thoughtful": (
        "A thoughtful portrait that asks more than it answers.",
        "Reflective, precise and quietly moving.",
        "Patient with its questions, honest about its doubts.",
        "A meditation on memory, work and what is owed.",
        "Serious and clear-eyed, with room to think.",
    ),
}

TITLE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "gentle": ("Quiet", "Warm", "Little", "Slow", "Kind", "Golden", "Sunday"),
    "tense": ("Last", "Broken", "Hidden", "Burning", "Midnight", "Hollow", "Deadly"),
    "funny": ("Unlikely", "Ridiculous", "Almost Perfect", "Borrowed", "Accidental", "Crooked", "Wrong"),
    "thoughtful": ("Forgotten", "Distant", "Patient", "Unwritten", "Inner", "Silver", "Other"),
}

PLACES: Final = (
    "Port Avel", "Mirrow", "Saint Osk", "Tallowfield", "Kestrel Bay", "Bramhollow", "Vienna Street", "Oru",
    "Lindqvist Harbour", "Calder Row", "Northmere", "Santa Bruma", "Quillan", "Dunmarrow", "Aster Point",
    "Upper Wend", "Tarn", "Molino Alto", "Elderby", "New Corrin", "Grauheim", "Sable Island", "Ostrava Lane",
    "Pellham", "Marisol", "Hexley", "Fenwick Cross", "Valdoro", "Birk", "Little Tarrow",
)  # fmt: skip

LAST_NAMES: Final = (
    "Marrow", "Okafor", "Lindgren", "Vasquez", "Petrov", "Ashdown", "Tanaka", "Rao", "Bellweather", "Novak",
    "Haddad", "Quist", "Moreau", "Adeyemi", "Falk", "Castellan", "Brandt", "Osei", "Whitlock", "Farrow",
    "Ibsen", "Kaur", "Delacroix", "Strand", "Ferreira", "Holloway", "Zhou", "Amsel", "Ruiz", "Thorne",
)  # fmt: skip
