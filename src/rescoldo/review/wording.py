"""What a reviewer reads, in each language."""

from __future__ import annotations

ENGLISH = {
    "title": "Which answer is better?",
    "question": "Which answer serves this input better? Judge the content: is it right, specific and complete?",
    "input": "Input",
    "answer": "Answer",
    "raw": "text as written",
    "none": "no answer",
    "empty": "empty",
    "left": "1 · Answer 1",
    "equal": "0 · Equal",
    "right": "2 · Answer 2",
    "note": "Note (optional)",
    "previous": "Previous",
    "next": "Next",
    "undo": "Undo last vote",
    "finish": "Finish",
    "keys": "Keys: 1, 2 and 0 vote, N writes a note (Esc leaves it), ← and → move, U takes the last vote back.",
    "progress": "{number} of {total}, {done} voted",
    "voted": "Your vote: {vote}",
    "replaced": "This took the place of another vote of yours on the same answers (given in another window). "
    "The last one counts.",
    "undone": "The vote was taken back.",
    "nothing": "There is no vote to take back.",
    "all_done": "All {total} pairs of answers have your vote.",
    "all_done_more": "You can go back and change votes. Finish ends the program; the terminal then shows the result.",
    "finished": "Finished. The votes are saved, and this page can be closed.",
    "lost": "The vote was NOT saved: the program does not answer. Start it again in the terminal and open the new "
    "address; "
    "earlier votes are kept.",
    "refused": "The vote was NOT saved: ",
    "script": "This page needs JavaScript.",
    "prompt": "1, 2, 0 = equal, n = note, b = back, u = undo, q = quit: ",
    "note_prompt": "Note: ",
    "unknown": "Please type 1, 2, 0, n, b, u or q.",
    "saved": "The votes are saved; the same command resumes.",
}
SPANISH = {
    "title": "¿Qué respuesta es mejor?",
    "question": "¿Qué respuesta sirve mejor a esta entrada? Juzgue el contenido: ¿es correcta, concreta y completa?",
    "input": "Entrada",
    "answer": "Respuesta",
    "raw": "texto tal como se escribió",
    "none": "sin respuesta",
    "empty": "vacío",
    "left": "1 · Respuesta 1",
    "equal": "0 · Iguales",
    "right": "2 · Respuesta 2",
    "note": "Nota (opcional)",
    "previous": "Anterior",
    "next": "Siguiente",
    "undo": "Deshacer el último voto",
    "finish": "Terminar",
    "keys": "Teclas: 1, 2 y 0 votan, N escribe una nota (Esc sale de ella), ← y → pasan de una a otra, U deshace el "
    "último voto.",
    "progress": "{number} de {total}, {done} con voto",
    "voted": "Su voto: {vote}",
    "replaced": "Este voto sustituye a otro suyo sobre las mismas respuestas (emitido en otra ventana). "
    "Cuenta el último.",
    "undone": "El voto se ha retirado.",
    "nothing": "No hay ningún voto que deshacer.",
    "all_done": "Las {total} parejas de respuestas tienen su voto.",
    "all_done_more": "Puede volver atrás y cambiar votos. Terminar cierra el programa; "
    "el terminal muestra entonces el resultado.",
    "finished": "Terminado. Los votos están guardados y esta página se puede cerrar.",
    "lost": "El voto NO se ha guardado: el programa no responde. Vuelva a iniciarlo en el terminal y abra la nueva "
    "dirección; "
    "los votos anteriores se conservan.",
    "refused": "El voto NO se ha guardado: ",
    "script": "Esta página necesita JavaScript.",
    "prompt": "1, 2, 0 = iguales, n = nota, b = atrás, u = deshacer, q = salir: ",
    "note_prompt": "Nota: ",
    "unknown": "Escriba 1, 2, 0, n, b, u o q.",
    "saved": "Los votos están guardados; la misma orden continúa.",
}
LANGUAGES = {"en": ENGLISH, "es": SPANISH}
