"""The reports' texts in Spanish: English template → Spanish template, with the same names in braces."""

from __future__ import annotations

# What reports themselves say.
TEXTS = {
    # headings and labels
    "Comparison": "Comparación",
    "Evaluation": "Evaluación",
    "Warning": "Aviso",
    "Scores": "Puntuaciones",
    "Components": "Componentes",
    "Beside the score": "Junto a la puntuación",
    "Ranking": "Clasificación",
    "Paired tests": "Pruebas por pares",
    "In figures": "En cifras",
    "Several samples": "Varias muestras",
    "best of {k}": "la mejor de {k}",
    "pass@{k}, score ≥ {limit}": "pass@{k}, puntuación ≥ {limit}",
    "uncertainty that more samples would take away": "incertidumbre que más muestras eliminarían",
    "figure": "cifra",
    "points": "puntos",
    "The metric needs no right answer: whoever uses the model can choose the best of several answers by it.": "La "
    "métrica no necesita la respuesta correcta: quien use el modelo puede elegir con ella la mejor de varias.",
    "The metric needs the right answer: whoever uses the model cannot choose by it, so the best is a bound.": "La "
    "métrica necesita la respuesta correcta: quien use el modelo no puede elegir con ella; la mejor es solo una cota.",
    "Answers": "Respuestas",
    "The content beside the dataset": "El contenido, junto al del conjunto de datos",
    "Normal is the range of the dataset's own answers, half an interquartile range wider on both sides. An answer "
    "outside of any of these ranges is unlike them.": "Normal es el rango de las respuestas del propio conjunto de "
    "datos, ampliado por ambos lados con medio rango intercuartílico. Una respuesta fuera de alguno de estos rangos "
    "no se parece a ellas.",
    "What is wrong with the answers of {model}": "Qué falla en las respuestas de {model}",
    "Nothing.": "Nada.",
    "… and {n} more": "… y {n} más",
    "dataset": "conjunto de datos",
    "examples": "ejemplos",
    "role": "rol",
    "training set": "conjunto de entrenamiento",
    "date": "fecha",
    "rank": "puesto",
    "model": "modelo",
    "mean": "media",
    "median": "mediana",
    "standard deviation": "desviación típica",
    "min": "mínimo",
    "max": "máximo",
    "share ≥ 0.8": "proporción ≥ 0,8",
    "share ≥ 0.9": "proporción ≥ 0,9",
    "share = 1.0": "proporción = 1,0",
    "perplexity": "perplejidad",
    "accuracy": "exactitud",
    "macro F1": "F1 macro",
    "accuracy of the likeliest label": "exactitud de la etiqueta más probable",
    "calibration error of the labels' probabilities": "error de calibración de las probabilidades de las etiquetas",
    "the same, scaled by a temperature": "lo mismo, escalado con una temperatura",
    "label": "etiqueta",
    "another answer": "otra respuesta",
    "precision": "precisión",
    "recall": "exhaustividad",
    "What {model} answered to each label": "Qué respondió {model} a cada etiqueta",
    "points against the baseline": "puntos frente al modelo de partida",
    "difference": "diferencia",
    "95 % interval": "intervalo del 95 %",
    "Wilcoxon p": "p de Wilcoxon",
    "Cohen's d": "d de Cohen",
    "wins / ties / losses": "victorias / empates / derrotas",
    "no difference": "sin diferencia",
    "negligible": "despreciable",
    "small": "pequeño",
    "medium": "mediano",
    "large": "grande",
    "not defined: one input only": "no definida: una sola entrada",
    "not defined: all differences equal": "no definida: todas las diferencias son iguales",
    "ended by itself": "terminó por sí sola",
    "tokens an answer": "tokens por respuesta",
    "input's words used": "palabras de la entrada usadas",
    "longest run copied (words)": "tramo más largo copiado (palabras)",
    "valid document, but text around it": "documento válido, pero con texto alrededor",
    "descriptions repeated": "descripciones repetidas",
    "How many answers have which score": "Cuántas respuestas tienen cada puntuación",
    "score": "puntuación",
    "repeat": "repetición",
    "tokens": "tokens",
    "words": "palabras",
    "empty": "vacío",
    "text as written": "texto tal como se escribió",
    "no answer": "sin respuesta",
    "cut off": "cortada",
    "copied from a training answer": "copiada de una respuesta de entrenamiento",
    "ignoring the input": "no trata de la entrada",
    # the diagnostics
    "repeated items": "elementos repetidos",
    "items in other answers, too": "elementos también en otras",
    "distinct trigrams": "trigramas distintos",
    "word pairs known from answers": "pares de palabras conocidos de respuestas",
    "input's words in the items": "palabras de la entrada en los elementos",
    "words in an order that no answer has": "palabras en un orden que ninguna respuesta tiene",
    "items with few of the input's words": "elementos con pocas palabras de la entrada",
    "figures not in the input": "cifras ajenas a la entrada",
    "names not in the input": "nombres ajenos a la entrada",
    "words copied from the input": "palabras copiadas de la entrada",
    "words copied from training": "palabras copiadas del entrenamiento",
    "length ({unit})": "longitud ({unit})",
    "perplexity (base model)": "perplejidad (modelo base)",
    "≤ {high}": "≤ {high}",
    "≥ {low}": "≥ {low}",
    "{low} to {high}": "de {low} a {high}",
    "{measure}: {value} (normal: {range})": "{measure}: {value} (normal: {range})",
    "unlike the dataset's own": "distintas de las del conjunto",
    "95 % interval of that share": "intervalo del 95 % de esa parte",
    "normal": "normal",
    # the verdict
    "{first} and {last}": "{first} y {last}",
    "{model} has learned the form ({score}, {points} points against {reference})": "{model} ha aprendido la forma "
    "({score}, {points} puntos frente a {reference})",
    "Adopt {model}: {form}, and {because}.": "Adoptar {model}: {form}, y {because}.",
    "Keep {reference}: {form}, but {because}.": "Mantener {reference}: {form}, pero {because}.",
    "Keep {reference} for now: {form}, but {because}.": "Mantener {reference} por ahora: {form}, pero {because}.",
    "On the form: {caveat}.": "Sobre la forma: {caveat}.",
    "its content is doubtful: {k} of {n} answers are unlike the dataset's own, most often: {reasons}": "su "
    "contenido es dudoso: {k} de {n} respuestas no se parecen a las del conjunto de datos; lo más frecuente: {reasons}",
    "items that repeat each other": "elementos que se repiten",
    "items that stand in other answers, too": "elementos que también están en otras respuestas",
    "the same phrases again and again": "las mismas frases una y otra vez",
    "few of the input's words": "pocas palabras de la entrada",
    "fewer figures": "menos cifras",
    "more figures that the input does not have": "más cifras que la entrada no tiene",
    "fewer names": "menos nombres",
    "more names that the input does not have": "más nombres que la entrada no tiene",
    "long runs copied from the input": "largos tramos copiados de la entrada",
    "long runs copied from training answers": "largos tramos copiados de respuestas de entrenamiento",
    "less text": "menos texto",
    "more text": "más texto",
    "more predictable to the base model": "más previsibles para el modelo base",
    "less predictable to the base model": "menos previsibles para el modelo base",
    "nobody has judged its content yet": "nadie ha juzgado todavía su contenido",
    "whether its content is better is not settled": "no está claro que su contenido sea mejor",
    "people": "las personas",
    "the judge {model}": "el juez {model}",
    "{who}: {a} against {b}: no two answers to choose from (identical, or failed)": (
        "{who}: {a} frente a {b}: no hay dos respuestas entre las que elegir (son idénticas o fallaron)"
    ),
    "{who} preferred its content to that of {others}": "según {who}, su contenido es preferible al de {others}",
    "{who} preferred the content of {others}": "según {who}, es preferible el contenido de {others}",
    "`{command}` (about {votes} votes)": "`{command}` (unos {votes} votos)",
    "the comparison with `--judge MODEL`": "la comparación con `--judge MODELO`",
    " or ": " o ",
    "To know more: {ways}.": "Para saber más: {ways}.",
    # what it rests on
    "form: {form} ({reasons})": "forma: {form} ({reasons})",
    "content: {text}": "contenido: {text}",
    "learned": "aprendida",
    "not enough": "no basta",
    "{votes} votes of {n} reviewers": "votos: {votes}; revisores: {n}",
    "agreement (Krippendorff's alpha) {alpha}": "acuerdo (alfa de Krippendorff) {alpha}",
    "the judge {model} told {share} of {n} damaged answers from the dataset's own (95 % interval {low} to "
    "{high})": "el juez {model} distinguió el {share} de {n} respuestas dañadas de las del conjunto (intervalo del "
    "95 %: de {low} a {high})",
    "{known}: unfit, not counted": "{known}: no apto, no cuenta",
    "{who}: {a} against {b} {wins} won, {ties} equal, {losses} lost, win rate {rate} (95 % interval {low} to "
    "{high})": "{who}: {a} frente a {b}: ganadas {wins}, iguales {ties}, perdidas {losses}; preferencia {rate} "
    "(intervalo del 95 %: de {low} a {high})",
    "about {n} more would settle it": "unos {n} votos más lo aclararían",
    "not settled": "sin aclarar",
    "{k} of {n} answers are unlike the dataset's own (share {share}, 95 % interval {low} to {high}; among the "
    "dataset's own answers {own})": "{k} de {n} respuestas no se parecen a las del conjunto de datos (proporción "
    "{share}, intervalo del 95 %: de {low} a {high}; entre las del propio conjunto, {own})",
    "no sign against it, and no proof for it": "ni un indicio en contra ni una prueba a favor",
    "missing: votes of people: {command}": "faltan votos de personas: {command}",
    "missing: a judge that has passed its exam: {command}": "falta un juez que haya aprobado su examen: {command}",
    "missing: answers of the dataset's own, to hold these against": "faltan respuestas del propio conjunto de datos "
    "con las que comparar estas",
    "missing: another model whose answers can be read: those of {others} mostly cannot": "falta otro modelo cuyas "
    "respuestas se puedan leer: las de {others}, en su mayoría, no se pueden",
}

# What documents say themselves: the phrases of which reasons, warnings and notes are made.
MESSAGES = {
    # the rule
    "Adopt {model}: it scores {mean:.1%}, {points:+.1f} points against {reference}.": "Adoptar {model}: obtiene "
    "{mean:.1%}, {points:+.1f} puntos frente a {reference}.",
    "Keep {reference}: {model} is only {points:+.1f} points ahead, and {reference} is the simpler one.": "Mantener "
    "{reference}: {model} solo está {points:+.1f} puntos por delante, y {reference} es más simple.",
    "Keep {reference}: {model} is at {points:+.1f} points; overfitting is suspected.": "Mantener {reference}: {model} "
    "está a {points:+.1f} puntos; se sospecha sobreajuste.",
    "Keep {reference}: {model} is better ({points:+.1f} points), but at {mean:.1%} below {limit:.0%}.": "Mantener "
    "{reference}: {model} es mejor ({points:+.1f} puntos), pero con {mean:.1%} no llega al {limit:.0%}.",
    "{sentence} But {caveat}.": "{sentence} Pero {caveat}.",
    "{model} {mean:.1%}, at least {limit:.0%}": "{model} {mean:.1%}, como mínimo {limit:.0%}",
    "{model} {mean:.1%}, below {limit:.0%}": "{model} {mean:.1%}, por debajo del {limit:.0%}",
    "{model} - {reference}: {points:+.1f} points, at least {least:.0f} points": "{model} - {reference}: "
    "{points:+.1f} puntos, como mínimo {least:.0f} puntos",
    "{model} - {reference}: {points:+.1f} points, less than {least:.0f} points": "{model} - {reference}: "
    "{points:+.1f} puntos, menos de {least:.0f} puntos",
    "overfitting is suspected: its score on the training set would show it (--train-set)": "se sospecha sobreajuste: "
    "lo mostraría su puntuación en el conjunto de entrenamiento (--train-set)",
    "overfitting is suspected: {model} scores {mean:.1%} on its training set": "se sospecha sobreajuste: {model} "
    "obtiene {mean:.1%} en su conjunto de entrenamiento",
    "overfitting is suspected: {model} scores {mean:.1%} on its training set, hardly more than here, which speaks "
    "against it": "se sospecha sobreajuste: {model} obtiene {mean:.1%} en su conjunto de entrenamiento, apenas más que "
    "aquí, lo que habla en contra",
    "{model} scores {mean:.1%} on its training set": "{model} obtiene {mean:.1%} en su conjunto de entrenamiento",
    "what to try next: more or better examples, more epochs, a higher rank, all linears as targets": "qué probar "
    "ahora: más ejemplos o mejores, más épocas, un rango mayor, todas las capas lineales",
    "{model} {mean:.1%}": "{model} {mean:.1%}",
    "{model}, the untouched model, is better than both: look at the answers before deciding": "{model}, el modelo sin "
    "cambios, es mejor que ambos: mire las respuestas antes de decidir",
    "the 95 % interval of {name} is {low:+.1f} to {high:+.1f} points": "el intervalo del 95 % de {name} va de "
    "{low:+.1f} a {high:+.1f} puntos",
    "one example settles nothing: validate on more": "un ejemplo no aclara nada: valide con más",
    "the 95 % interval, {low:+.1f} to {high:+.1f} points, includes the threshold of {limit:.0f}: {how}": "el intervalo "
    "del 95 %, de {low:+.1f} a {high:+.1f} puntos, incluye el umbral de {limit:.0f}: {how}",
    "about {n:,d} more validation examples would settle it": "unos {n:,d} ejemplos de validación más lo aclararían",
    "about 1 more validation example would settle it": "un ejemplo de validación más lo aclararía",
    "the difference is so close to it that no practicable number of examples would settle it": "la diferencia está tan "
    "cerca que ningún número razonable de ejemplos lo aclararía",
    "{n} examples are too few: with fewer than {least} no result could settle it; {caveat}": "{n} ejemplos son "
    "demasiado pocos: con menos de {least} ningún resultado puede aclararlo; {caveat}",
    # what would change it
    "with doubtful answers counted as 0 ({counts}) {other}: read those answers before you rely on the score": "con "
    "las respuestas dudosas contadas como 0 ({counts}) {other}: lea esas respuestas antes de fiarse de la puntuación",
    "with the text around valid documents taken off ({counts}) {other}: taking it off needs no training": "sin el "
    "texto que rodea documentos válidos ({counts}) {other}: quitarlo no exige entrenar",
    "without the inputs that a model failed to answer ({k}) {other}: give the same command again, those answers are "
    "asked for anew": "sin las entradas que un modelo no respondió ({k}) {other}: repita la misma orden, que vuelve a "
    "pedir esas respuestas",
    "there is no input that both {reference} and {model} have answered: the decision is worth nothing": "no hay "
    "ninguna entrada que hayan respondido {reference} y {model}: la decisión no vale nada",
    "the means would be {means}, and the decision would be to {verdict}": "las medias serían {means}, y la decisión "
    "sería {verdict}",
    "adopt {model}": "adoptar {model}",
    "keep {model}": "mantener {model}",
    "{k} of {n} cut off": "{k} de {n} cortadas",
    "{k} of {n} copied from a training answer": "{k} de {n} copiadas de una respuesta de entrenamiento",
    "{k} of {n} ignoring the input": "{k} de {n} no tratan de la entrada",
    "{model}: {k} of {n}": "{model}: {k} de {n}",
    "{model}: {what}": "{model}: {what}",
    "{first}; {last}": "{first}; {last}",
    "{first}, {last}": "{first}, {last}",
    "{first} or {last}": "{first} o {last}",
    "{text}": "{text}",
    # a model's warnings
    "the metric `{name}` failed on {k} of {n} answers ({why}); it counts as 0 there": "la métrica `{name}` falló en "
    "{k} de {n} respuestas ({why}); allí cuenta como 0",
    "most often {why}": "lo más frecuente: {why}",
    "{k} of {n} answers failed and count as 0 ({why})": "{k} de {n} respuestas fallaron y cuentan como 0 ({why})",
    "{k} of {n} answers were cut off at the limit of new tokens": "{k} de {n} respuestas se cortaron en el límite de "
    "tokens nuevos",
    "{k} of {n} answers hold a valid document with text around it, which scores less than the document alone: without "
    "the text the mean would be {mean:.1%}": "{k} de {n} respuestas contienen un documento válido rodeado de texto, "
    "que puntúa menos que el documento solo: sin el texto la media sería {mean:.1%}",
    "{k} of {n} answers copy {words} words in a row from a training answer (longest: {longest})": "{k} de {n} "
    "respuestas copian {words} palabras seguidas de una respuesta de entrenamiento (máximo: {longest})",
    "{k} of {n} answers use less than {share:.0%} of their input's words": "{k} de {n} respuestas usan menos del "
    "{share:.0%} de las palabras de su entrada",
    "{k} descriptions repeat an earlier one of the same answer": "{k} descripciones repiten una anterior de la misma "
    "respuesta",
    # notes on an answer: why it cannot be read
    "answer: none: {why}": "respuesta: ninguna: {why}",
    "cut off after {tokens} tokens": "cortada tras {tokens} tokens",
    "answer: not a YAML mapping: {why}": "respuesta: no es un mapa YAML: {why}",
    "answer: {why}": "respuesta: {why}",
    "not {title}: {why}": "no es {title}: {why}",
    "not an object": "no es un objeto",
    "it is nothing": "está vacía",
    "it is a list": "es una lista",
    "it is plain text": "es texto corrido",
    "it is a {kind}": "es un {kind}",
    "it is {kind}": "es {kind}",
    "nested too deeply": "anidamiento demasiado profundo",
    "nested deeper than {depth}": "anidada a más de {depth} niveles",
    "longer than {characters} characters": "más de {characters} caracteres",
    "more than {count} values": "más de {count} valores",
    "more than {count} aliases": "más de {count} alias",
    "more than one YAML document": "más de un documento YAML",
    "a merge key (<<) takes a mapping or a list of mappings": "una clave de fusión (<<) admite un mapa o una lista de "
    "mapas",
    "a key that is a list or a mapping": "una clave que es una lista o un mapa",
    "alias *{name} is undefined, or refers to itself": "el alias *{name} no está definido, o se refiere a sí mismo",
    "tag {name}": "etiqueta {name}",
    "not YAML": "no es YAML",
    "{what} (line {line})": "{what} (línea {line})",
    "{what}: line {line} column {column} (char {place})": "{what}: línea {line}, columna {column} (carácter {place})",
    "mapping values are not allowed here": "aquí no puede ir un valor de un mapa",
    "mapping values are not allowed in this context": "aquí no puede ir un valor de un mapa",
    "could not find expected ':'": "falta un «:»",
    "did not find expected key": "falta una clave",
    "did not find expected '-' indicator": "falta un «-»",
    "did not find expected alphabetic or numeric character": "falta una letra o una cifra",
    "did not find expected node content": "falta un valor",
    "did not find expected ',' or ']'": "falta «,» o «]»",
    "did not find expected ',' or '}}'": "falta «,» o «}}»",
    "block sequence entries are not allowed in this context": "aquí no puede ir un elemento de una lista",
    "found unknown escape character": "secuencia de escape desconocida",
    "found a tab character that violates indentation": "un tabulador en la sangría",
    "found unexpected end of stream": "el texto termina antes de tiempo",
    "found character that cannot start any token": "un carácter que no puede estar ahí",
    "Expecting value": "falta un valor",
    "Expecting ',' delimiter": "falta una «,»",
    "Expecting ':' delimiter": "falta un «:»",
    "Expecting property name enclosed in double quotes": "falta el nombre de una propiedad entre comillas dobles",
    "Extra data": "sobra texto",
    "Unterminated string starting at": "cadena sin cerrar que empieza en",
    "Invalid control character at": "carácter de control no válido en",
    # notes on an answer: what cost points
    "completeness: {name} is missing": "completeness: falta {name}",
    "completeness: {name} is empty": "completeness: {name} está vacío",
    "{name}: {length} characters, {least} to {most} wanted": "{name}: {length} caracteres, se esperaban de {least} a "
    "{most}",
    "{name}: {length} characters, at least {least} wanted": "{name}: {length} caracteres, se esperaban al menos "
    "{least}",
    "{name}: not a list": "{name}: no es una lista",
    "{name}: 0 items, at least 2 wanted": "{name}: 0 elementos, se esperaban al menos 2",
    "{name}: 1 item, at least 2 wanted": "{name}: 1 elemento, se esperaban al menos 2",
    "{item}: not a mapping of id, description and priority": "{item}: no es un mapa de id, description y priority",
    "{item}: no {field}": "{item}: sin {field}",
    "{item}: no priority, one of High, Medium or Low": "{item}: sin priority (High, Medium o Low)",
    "{item}: priority {value} is not High, Medium or Low": "{item}: la priority {value} no es High, Medium ni Low",
    "id_format: {id} in {item} is not {prefix} and three digits": "id_format: {id} en {item} no es {prefix} y tres "
    "cifras",
    "id_format: {id} occurs {n} times in {name}": "id_format: {id} aparece {n} veces en {name}",
    "id_format: no IDs": "id_format: sin ID",
    "exact_match: not the record's answer": "exact_match: no es la respuesta del registro",
    "valid: not the structure of the record's answer": "valid: no tiene la estructura de la respuesta del registro",
    "rouge_l: {value:.3f}": "rouge_l: {value:.3f}",
    # by a schema
    "{component}: {what}": "{component}: {what}",
    "{component}: {field} {what}": "{component}: {field} {what}",
    "is missing": "falta",
    "is nested too deeply": "está anidado a demasiada profundidad",
    "is {kind}: expected {wanted}": "es {kind}, se esperaba {wanted}",
    "is {value}: expected one of {choices}": "es {value}, se esperaba uno de {choices}",
    "is {value}, which does not match {pattern}": "es {value}, que no encaja en {pattern}",
    "{id} is already used in item {index}": "{id} ya se usa en el elemento {index}",
    "{length} characters, at least {limit} wanted": "{length} caracteres, se esperaban al menos {limit}",
    "{length} characters, at most {limit} wanted": "{length} caracteres, se esperaban como mucho {limit}",
    "{length} items, at least {limit} wanted": "{length} elementos, se esperaban al menos {limit}",
    "{length} items, at most {limit} wanted": "{length} elementos, se esperaban como mucho {limit}",
    "an object": "un objeto",
    "a list": "una lista",
    "text": "texto",
    "true or false": "true o false",
    "a number": "un número",
    "a whole number": "un número entero",
    "null": "null",
}

SPANISH = TEXTS | MESSAGES
