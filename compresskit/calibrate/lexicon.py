"""Words and sentence patterns of the made-up plain sentences in the built-in texts.

Patterns hold slots: ``{food}`` is any word of that list, ``{cook:past}`` a phrase whose first word, a verb, is put into
the form ``past``, ``ing``, ``third`` or ``done`` (participle), ``{animal:many}`` a plural. Words and patterns are
written for this file; none is taken from a data set.
"""

from __future__ import annotations


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a list with commas."""
    return tuple(" ".join(part.split()) for part in text.split(","))


WORDS: dict[str, tuple[str, ...]] = {
    "person": phrases("""
        man, woman, boy, girl, child, baby, teenager, nurse, doctor, teacher, farmer, driver,
        soldier, singer, dancer, painter, waiter, tourist, student, neighbor, cyclist, fisherman,
        carpenter, mechanic, lawyer, judge, journalist, photographer, scientist, engineer, pilot,
        sailor, firefighter, gardener, tailor, butcher, guard, priest, clerk, customer, passenger,
        runner, swimmer, goalkeeper, toddler, gentleman, lady, grandmother, stranger, musician,
        writer, actor, hunter, climber, skater, plumber, librarian, surgeon, coach, chef
    """),
    "name": phrases("""
        Anna, Peter, Maria, John, Sarah, David, Emma, Omar, Li, Priya, Carlos, Fatima, Julia, Tom,
        Nina, Ivan, Grace, Samuel, Hana, Lucas, Chloe, Ahmed, Rosa, Victor, Ella, Yuki, Daniel,
        Ingrid, Paul, Leila, Mr. Brown, Mrs. Green, Dr. Patel, Miss Taylor, Jack, Olga, Diego, Kate,
        Ben, Aisha
    """),
    "relative": phrases("""
        my mother, my father, my sister, our neighbor, his brother, her daughter, their son, my
        aunt, your cousin, our teacher, my boss, her husband, his wife, my best friend, the
        landlord, my roommate, her uncle, a colleague, my grandfather, our dentist
    """),
    "animal": phrases("""
        dog, cat, horse, cow, bird, rabbit, squirrel, monkey, elephant, tiger, panda, sheep, goat,
        duck, kitten, puppy, frog, turtle, snake, lion, bear, wolf, fox, parrot, owl, whale,
        dolphin, bee, butterfly, hamster, donkey, chicken, pig, deer, crocodile, eagle
    """),
    "food": phrases("""
        onion, potato, tomato, carrot, apple, banana, orange, lemon, cake, pizza, sandwich, salad,
        soup, pasta, bread, cheese, egg, steak, fish, shrimp, pepper, garlic, cucumber, mushroom,
        cookie, pie, burger, omelette, curry, noodle dish, rice bowl, chocolate bar, ice cream,
        pancake, sausage, bowl of cereal, melon, pumpkin
    """),
    "drink": phrases("coffee, tea, milk, orange juice, beer, red wine, lemonade, water, hot chocolate, soda, whisky"),
    "thing": phrases("""
        ball, book, phone, guitar, knife, box, bottle, chair, table, lamp, camera, umbrella, hat,
        coat, shirt, dress, shoe, bag, suitcase, key, mirror, blanket, pillow, candle, ladder,
        hammer, rope, basket, bucket, broom, gun, sword, flag, newspaper, letter, ticket, map, toy,
        doll, kite, drum, laptop, keyboard, television, radio, clock, watch, ring, wallet, coin,
        pencil, paintbrush, helmet, glove, scarf, jacket, towel, pan, plate, spoon, cup, microphone,
        envelope, parcel, painting, statue, toolbox, fence, sofa, carpet, skateboard
    """),
    "instrument": phrases("guitar, piano, violin, flute, drums, trumpet, cello, harp, saxophone, accordion, keyboard"),
    "vehicle": phrases("""
        car, bus, truck, bicycle, motorcycle, train, boat, taxi, plane, helicopter, tractor, van,
        ship, scooter, ambulance, fire engine, tram, canoe, pickup, police car
    """),
    "where": phrases("""
        in the kitchen, on the beach, in the park, at the station, on the street, in a field, on the
        roof, in the garden, at the market, in front of a building, by the river, on a bench, in the
        snow, under a tree, at the airport, in a restaurant, on a stage, in the living room, near
        the lake, on the grass, in the mountains, at school, in the office, across the bridge, on
        the sidewalk, in a crowded room, at the hospital, behind the house, along the road, in the
        water, on a couch, in the bathroom, next to a wall, outside the shop, at the bus stop, in
        the forest, on the floor, inside the church, in the parking lot, at a wedding
    """),
    "place": phrases("""
        the museum, the library, the old town, the harbor, the village, the supermarket, the hotel,
        the theater, the bank, the post office, the gym, the castle, the stadium, the farm, the
        pharmacy, the zoo, the town hall, the beach, the bakery, the university, the campsite, the
        cinema, the train station, downtown
    """),
    "city": phrases("""
        London, Paris, Cairo, Tokyo, Berlin, Lagos, Madrid, Mumbai, Boston, Chicago, Toronto,
        Sydney, Lima, Nairobi, Moscow, Beijing, Istanbul, Rome, Vienna, Athens, Seoul, Jakarta,
        Dublin, Houston, Kiev, Damascus, Manila, Geneva, Oslo, Baghdad
    """),
    "country": phrases("""
        China, India, Russia, Brazil, Germany, France, Japan, Iran, Egypt, Turkey, Israel, Canada,
        Mexico, Spain, Italy, Ukraine, Syria, Pakistan, South Korea, Australia, Kenya, Nigeria,
        Greece, Poland, Iraq, Afghanistan, Britain, Argentina, Sweden, the United States, the
        Philippines, North Korea
    """),
    "organization": phrases("""
        the government, the company, the central bank, the court, the police, the army, the
        hospital, the airline, the union, the opposition, the ministry, the parliament, the city
        council, the university, the bank, the agency, the carmaker, the software maker, the United
        Nations, the committee, the regulator, the phone company, the church, the rebels, the
        security forces, the election commission
    """),
    "official": phrases("""
        the president, the prime minister, the mayor, the foreign minister, the judge, the senator,
        the spokesman, a senior official, the chief executive, the general, the governor, the
        finance minister, a police officer, the ambassador, the prosecutor, the party leader, the
        pope, the chairman, a witness, analysts
    """),
    "event": phrases("""
        explosion, earthquake, flood, plane crash, fire, protest, election, strike, shooting,
        bombing, storm, train accident, riot, attack, robbery, landslide, hurricane, summit, trial,
        drought, outbreak, ceasefire, power cut, car accident, kidnapping, hearing
    """),
    "issue": phrases("""
        nuclear program, trade deal, budget, tax plan, peace talks, new law, merger, pension reform,
        climate agreement, health care bill, border dispute, gas prices, human rights, gun control,
        the euro crisis, immigration, education, the death penalty, unemployment, corruption, drug
        trafficking, school uniforms, inflation
    """),
    "goods": phrases("""
        stocks, oil, gold, shares, sales, profits, prices, exports, the dollar, interest rates,
        revenue, bond yields, the euro, house prices, car sales, consumer spending, the index, net
        income
    """),
    "quality": phrases("""
        big, small, old, young, red, blue, green, black, white, brown, yellow, heavy, empty, broken,
        new, wooden, plastic, dirty, clean, cheap, expensive, beautiful, strange, large, tiny, long,
        shiny, colorful, wet, warm, cold, quiet, famous, tall, fat, thin, fresh, sharp, soft, round,
        pretty, modern
    """),
    "feeling": phrases("""
        happy, tired, angry, afraid, bored, excited, lonely, proud, nervous, hungry, surprised,
        worried, jealous, grateful, sad, confused, relieved, ashamed, calm, disappointed, sick, in
        love, curious
    """),
    "judgment": phrases("""
        good, bad, great, terrible, useful, boring, interesting, too long, unfair, wonderful,
        difficult, easy, dangerous, wrong, perfect, stupid, important, funny, overrated,
        disappointing, worth it, a waste of time, better than before, not what I expected, the best
        I have seen, hard to understand
    """),
    "weather": phrases("""
        rain, snow, heavy rain, thunder, strong wind, fog, sunshine, hail, a heat wave, frost,
        clouds, a storm, light showers, freezing temperatures, high humidity
    """),
    "illness": phrases("""
        headache, cold, fever, sore throat, broken arm, back pain, cough, allergy, stomach ache,
        flu, toothache, rash, sprained ankle, cancer, diabetes, heart disease, depression, high
        blood pressure
    """),
    "sport": phrases("""
        football, basketball, tennis, baseball, golf, hockey, chess, cricket, volleyball, rugby,
        boxing, badminton, soccer, poker, table tennis
    """),
    "subject": phrases("""
        mathematics, history, biology, physics, music, law, medicine, economics, art, chemistry,
        geography, philosophy, computer science, literature, religion, grammar, photography,
        statistics
    """),
    "matter": phrases("""
        cell, atom, planet, star, volcano, river, bacteria, virus, gene, molecule, ocean, magnet,
        comet, glacier, dinosaur, insect, metal, muscle, brain, heart, wave, battery, engine, galaxy
    """),
    "item": phrases("""
        movie, book, restaurant, game, song, phone, hotel, meal, lesson, website, show, album,
        laptop, recipe, trip, service, concert, novel, play, camera, party, job, idea, plan,
        question, answer
    """),
    "then": phrases("""
        yesterday, last night, on Monday, two days ago, last week, this morning, in 2003, last
        summer, on Friday afternoon, a year ago, during the war, after dinner, before sunrise, in
        the 1990s, at midnight, on Tuesday, an hour ago, on Christmas Eve
    """),
    "soon": phrases("""
        tomorrow, next week, on Sunday, this evening, next year, in a few minutes, after work, in
        March, at noon, before the weekend, by the end of the month, when it stops raining, in ten
        days, tonight
    """),
    "often": phrases("every day, on weekends, once a year, in the morning, most of the time, twice a week, sometimes"),
    "how": phrases("""
        slowly, quickly, carefully, quietly, loudly, happily, alone, together, very well, badly,
        with a friend, without a word, in silence, for the first time, again, by accident, with both
        hands, in a hurry
    """),
    "amount": phrases(
        "two, three, four, five, six, seven, eight, nine, ten, twelve, a dozen, 15, 20, 25, 30, 40, 50, 100"
    ),
    "count": phrases("a few, several, many, some, two, three, four, five, a group of, a pair of, dozens of, both"),
    "figure": phrases("0.5, 1.2, 2, 2.5, 3, 3.8, 4, 5.1, 6, 7.4, 8, 9.6, 10, 12, 17, 20, 24, 30, 45, 60, 75, 90"),
    "sum": phrases("""
        $5, $20, $150, $3000, $1 million, $2.5 billion, 40 cents, 300 euros, 25 cents a share,
        $17.95, £80, half a million dollars, $720 million, ten dollars
    """),
    "color": phrases("red, blue, green, black, white, brown, yellow, pink, gray, purple, orange, dark blue"),
    # Verb phrases: the first word is the verb.
    "act": phrases("""
        walk {where}, run {where}, sit {where}, stand {where}, sleep {where}, dance {where}, wait
        {where}, jump over a {thing}, ride a {animal}, ride a {vehicle}, drive a {vehicle}, play the
        {instrument}, play {sport}, play with a {animal}, read a {thing}, hold a {thing}, carry a
        {thing}, throw a {thing}, open a {thing}, cut a {thing}, paint a {thing}, push a {vehicle},
        climb a ladder, swim {where}, sing {where}, laugh {where}, talk to a {person}, talk on the
        phone, look at a {thing}, point at a {animal}, feed a {animal}, chase a {animal}, wash a
        {vehicle}, fix a {thing}, kick a ball, shoot a {thing}, drink {drink}, pour {drink} into a
        cup, eat a {food}, smile at a {person}, hug a {person}, fight with a {person}, lie {where},
        watch a {animal}, put on a {thing}, take off a {thing}, fall off a {vehicle}, lean on a
        {thing}, draw a {animal}, fold a {thing}, brush a {animal}, lift a {thing}, tie a rope, ski
        {where}, surf {where}, cry {where}, write a {thing}
    """),
    "cook": phrases("""
        slice a {food}, peel a {food}, chop a {food}, fry a {food}, cook a {food}, bake a {food},
        cut a {food}, mix the dough, boil an egg, stir the soup, add {food:many} to a pan, pour oil
        into a pan, season the meat, grate the cheese, taste the sauce, eat a {food}, buy a {food},
        spread butter on bread, squeeze a lemon, mash the potatoes, crack an egg, roll the dough,
        put the {food} in the oven, wash the rice
    """),
    "do": phrases("""
        visit {place}, go to {place}, leave {place}, find a {thing}, lose a {thing}, buy a {thing},
        sell a {thing}, break a {thing}, forget the {thing}, call {relative}, meet {relative}, help
        {relative}, move to {city}, work in {city}, study {subject}, teach {subject}, clean the
        house, pay the bill, miss the bus, learn to swim, start a new job, read the news, take a
        picture of the {animal}, plan a trip to {country}, write to {relative}, stay at home, get up
        early, lend {name} some money, catch a {illness}, fix the {vehicle}, send a message to
        {name}, borrow a {thing}, return the {thing}, wait for {name}, quit the job, win a prize,
        watch a movie, listen to music, save money, lock the door, sign the contract, cancel the
        order
    """),
    "announce": phrases("""
        reject the {issue}, approve the {issue}, discuss the {issue}, defend the {issue}, criticize
        {country}, warn {country}, meet leaders of {country}, visit {city}, sue {organization},
        arrest {amount} people, delay the {issue}, sign the {issue}, cut {amount} thousand jobs,
        close {amount} offices, open an office in {city}, resign, deny the charges, call for new
        elections, release {amount} prisoners, accuse {country} of spying, send troops to {country},
        buy a rival for {sum}, raise its forecast, ban protests in {city}, investigate the {event},
        vote on the {issue}, win the election, lose the vote, back the {issue}, face trial, fire the
        minister, recall {amount} thousand cars, kill {amount} militants
    """),
}

PATTERNS: dict[str, tuple[str, ...]] = {
    "scenes": (
        "A {person} is {act:ing}.",
        "The {person} is {act:ing}.",
        "A {quality} {animal} is {stroll:ing} {where}.",
        "A {person} in a {color} {wear} is {act:ing}.",
        "{count} {person:many} are {act:ing}.",
        "Two {animal:many} {where}",
        "a {quality} {thing} and a {quality} {thing} {where}",
        "A {person} and a {person} are {act:ing}.",
        "The {person} {act:past} while a {person} was {act:ing}.",
        "There is a {quality} {thing} {where}.",
        "A {color} {vehicle} parked {where}",
        "Close-up of a {quality} {animal} with a {thing}.",
        "Nobody is {act:ing} {where}.",
    ),
    "cooking": (
        "A {person} is {cook:ing}.",
        "First {cook}, then {cook}.",
        "{name} {cook:past} and {cook:past}.",
        "I like {food:many} with {drink}, but {relative} prefers {food:many}.",
        "Let it stand for {amount} minutes, then {cook}.",
        "The {food} tastes {judgment} with a glass of {drink}.",
        "We ran out of {drink}, so {name} {do:past}.",
    ),
    "daily life": (
        "{name} {do:past} {then}.",
        "{relative} wants to {do} {soon}.",
        "I have {do:done} {amount} times this year.",
        "We usually {do} {often}.",
        "{name} has never {do:done}, and {relative} hasn't either.",
        "Please {do} before you {do}.",
        "When I was young, {relative} {do:past} {often}.",
        "If you {do}, {name} will {do} {soon}.",
        "My {thing} is {quality}, but yours is {quality}.",
        "{relative} {do:past} because the {thing} was {quality}.",
        "She said that {name} {do:past} {how}.",
        "It took me {amount} hours to {do}.",
        "Don't {do} unless {name} tells you to.",
    ),
    "feelings": (
        "I felt {feeling} when {relative} {do:past}.",
        "{name} is {feeling} because nobody wants to {do}.",
        "Are you {feeling}, or just {feeling}",
        "You look {feeling} today; did something happen",
        "He was so {feeling} that he {do:past} {how}.",
        "It makes me {feeling} to see {relative} so {feeling}.",
        "I am not {feeling} any more, only a little {feeling}.",
    ),
    "travel": (
        "We took a {vehicle} from {city} to {city} and arrived {then}.",
        "The {vehicle} to {city} leaves {soon}.",
        "{city} is {amount} hours from {city} by {vehicle}.",
        "The hotel in {city} was {judgment}, and {place} was only {amount} minutes away.",
        "Tickets for {place} cost {sum}.",
        "Our {vehicle} broke down near {city}, so we {do:past}.",
        "People in {country} {do} {often}.",
    ),
    "weather": (
        "There will be {weather} in {city} {soon}.",
        "{weather} is expected across {country} {soon}.",
        "Because of {weather}, the {vehicle} was {amount} hours late.",
        "It was {figure} degrees in {city} {then}, with {weather} in the evening.",
        "After {weather}, the streets of {city} were {quality} and {quality}.",
    ),
    "work and school": (
        "{name} teaches {subject} and studies {subject} at night.",
        "The meeting about the {item} was moved to {amount} o'clock.",
        "Can you send me the notes on {subject} before I {do}",
        "Students who {do} learn {subject} faster.",
        "{relative} works as a {person} in {city} and earns {sum} a week.",
        "I think that {subject} is {judgment}, although {subject} is {judgment}.",
        "The {person} asked the {person} to {do}.",
    ),
    "news": (
        "{official} {announce:past} {then}.",
        "{organization} {announce:third}",
        "{country} {announce:third} after {event}",
        "{amount} killed in {country} {event}",
        "At least {amount} people died in the {event} near {city} {then}, {official} said.",
        "{official} said {organization} would {announce}.",
        "{organization} has {announce:done}, {official} told reporters in {city} {then}.",
        "{official} urges {country} to {announce}",
        "Thousands protest in {city} over {issue}",
        "{event} in {city} leaves {amount} injured",
        "{country} and {country} hold talks on {issue}",
        "The {event} came a day after {organization} {announce:past}.",
        "{official} in {country} to discuss {issue}",
    ),
    "business": (
        "{goods} rose {figure} percent to {sum} {then}.",
        "{goods} fell {figure} percent as {organization} {announce:past}.",
        "Shares of {organization} closed at {sum}, down {figure} percent.",
        "{organization} reported a profit of {sum}, compared with {sum} a year earlier.",
        "{goods} up, {goods} down after {event} in {country}",
        "Analysts had expected {goods} to rise by {figure} percent this quarter.",
        "{organization} will pay {sum} for the {item} unit, the company said {then}.",
    ),
    "opinions": (
        "I think the {item} is {judgment}.",
        "In my opinion the {item} was {judgment}, but the {item} was {judgment}.",
        "It depends on whether you want to {do} or to {do}.",
        "You should never {do} if you can {do} instead.",
        "That is {judgment}, because a {thing} does not {do}.",
        "As far as I know, there is no rule that says you must {do}.",
        "This {item} is {judgment}; the {item} by {name} is {judgment}.",
        "I would {do} first, then ask {relative} about the {item}.",
        "The problem with the {item} is that it makes people {feeling}.",
        "Both are fine, but a {quality} {thing} is {judgment} for a {person}.",
    ),
    "health": (
        "{name} stayed in bed with a {illness} and drank {drink}.",
        "If the {illness} lasts more than {amount} days, see a doctor.",
        "Studies show that {drink} lowers the risk of {illness} by {figure} percent.",
        "The {person} gave the {person} something against the {illness}.",
        "People with {illness} should not {do} {often}.",
    ),
    "sports": (
        "{city} beat {city} {amount} to {amount} in {sport} {then}.",
        "{name} won the {sport} match in {country} after {amount} minutes.",
        "The {sport} coach is {feeling} about the team.",
        "{country} reaches the {sport} final in {city}",
        "Playing {sport} {often} is {judgment}.",
    ),
    "nature and science": (
        "A {matter} is larger than a {matter}, but smaller than a {matter}.",
        "{animal:many} live in {country} and eat {food:many}.",
        "Scientists in {city} found a new kind of {matter} {then}.",
        "The {matter} of a {animal} is {figure} times heavier than that of a {animal}.",
        "Without a {matter} there would be no {matter}.",
        "The {animal} is known for its {quality} {body}.",
        "According to a study of {subject}, every {matter} has a {matter}.",
    ),
    "questions": (
        "Where did {name} {do} {then}",
        "How do I {do} without a {thing}",
        "Why is the {animal} {stroll:ing} {where}",
        "What is the difference between a {thing} and a {thing}",
        "Who {announce:past} {then}",
        "How much does a {quality} {item} cost in {country}",
        "Should I {do} or {do}",
        "Is it {judgment} to {do} {often}",
        "When will {organization} {announce}",
        "Does anyone know how to {cook}",
        "Which {item} is {judgment} for a {person} with a {illness}",
        "Can a {animal} eat {food:many}",
    ),
}

WORDS["wear"] = phrases("shirt, dress, hat, jacket, coat, uniform, suit, sweater, helmet, swimsuit")
WORDS["body"] = phrases("tail, teeth, eyes, feathers, legs, voice, ears, horns, wings, nose")
WORDS["stroll"] = phrases("sleep, run, walk, sit, jump, swim, lie, stand, play, eat, look around, roll, drink, climb")
