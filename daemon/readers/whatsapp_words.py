"""What WhatsApp itself writes into an exported chat, in the languages that its users have seen: names of files,
placeholders of media, deleted messages, calls, and marks of edits."""

# In front of the other person's or the group's name in the name of the exported file.
FILE_PREFIXES = (
    "whatsapp chat with ", "whatsapp chat mit ", "whatsapp chat - ", "whatsapp-chat mit ", "whatsapp-chat met ",
    "whatsapp-chatt med ", "whatsapp-chat med ", "whatsapp-samtale med ", "whatsapp sohbeti - ", "whatsapp chat - ",
    "chat de whatsapp con ", "chat whatsapp con ", "chat do whatsapp com ", "conversa do whatsapp com ",
    "conversa de whatsapp amb ", "discussion whatsapp avec ", "czat whatsapp z użytkownikiem ", "czat whatsapp z ",
    "чат whatsapp с ", "чат whatsapp із ", "чат whatsapp з ", "chat whatsapp dengan ", "whatsapp-keskustelu: ",
    "whatsapp chat s ", "whatsapp chat cu ", "conversație whatsapp cu ", "محادثة واتساب مع ", "دردشة واتساب مع ",
    "צ'אט whatsapp עם ", "与", "whatsapp 聊天 - ",
)  # fmt: skip

# A whole message that is only a placeholder where the mark of direction in front of it was lost.
_MEDIA = ("image", "video", "audio", "gif", "sticker", "document", "contact card", "video note", "media", "photo")
MEDIA = frozenset(f"{word} omitted" for word in _MEDIA) | frozenset((
    "imagen omitida", "vídeo omitido", "video omitido", "audio omitido", "sticker omitido", "gif omitido",
    "documento omitido", "imagem ocultada", "vídeo ocultado", "áudio ocultado", "figurinha omitida", "imagem omitida",
    "bild weggelassen", "video weggelassen", "audio weggelassen", "sticker weggelassen", "gif weggelassen",
    "dokument weggelassen", "image absente", "vidéo absente", "audio omis", "image omise", "vidéo omise",
    "sticker omis", "gif omis", "document omis", "immagine omessa", "video omesso", "audio omesso",
    "sticker non incluso", "afbeelding weggelaten", "video weggelaten", "audio weggelaten",
    "изображение отсутствует", "видео отсутствует", "аудиофайл отсутствует", "görüntü dahil edilmedi",
    "video dahil edilmedi", "ses dahil edilmedi",
))  # fmt: skip

DELETED = frozenset((
    "this message was deleted", "this message was deleted.", "you deleted this message", "you deleted this message.",
    "this message was deleted by admin", "waiting for this message",
    "waiting for this message. this may take a while.",
    "diese nachricht wurde gelöscht.", "diese nachricht wurde gelöscht", "du hast diese nachricht gelöscht.",
    "du hast diese nachricht gelöscht", "se eliminó este mensaje.", "se eliminó este mensaje",
    "eliminaste este mensaje.",
    "eliminaste este mensaje", "mensagem apagada", "essa mensagem foi apagada", "você apagou esta mensagem",
    "ce message a été supprimé", "vous avez supprimé ce message", "questo messaggio è stato eliminato",
    "hai eliminato questo messaggio", "dit bericht is verwijderd", "je hebt dit bericht verwijderd",
    "данное сообщение удалено", "это сообщение было удалено", "вы удалили данное сообщение", "bu mesaj silindi",
    "bu mesajı sildiniz", "ta wiadomość została usunięta", "تم حذف هذه الرسالة", "הודעה זו נמחקה", "此消息已删除",
))  # fmt: skip

CALLS = frozenset((
    "missed voice call", "missed video call", "missed group voice call", "missed group video call", "voice call",
    "video call", "verpasster sprachanruf", "verpasster videoanruf", "llamada perdida", "videollamada perdida",
    "chamada de voz perdida", "chamada de vídeo perdida", "appel vocal manqué", "appel vidéo manqué",
    "chiamata persa", "videochiamata persa", "gemiste spraakoproep", "gemiste video-oproep", "null",
))  # fmt: skip

# Inside the angle brackets behind a text that was edited.
EDITED = ("edited", "bearbeitet", "editado", "editó", "modifié", "modificato", "bewerkt", "изменен", "düzenlendi",
          "edytowan", "redigerad", "redigeret", "تعديل", "נערכה", "编辑", "編輯", "編集")  # fmt: skip

# Inside the angle brackets behind a caption.
ENCLOSED = ("attached:", "anhang:", "angehängt:", "adjunto:", "anexado:", "anexo:", "joint", "allegato:", "bijgevoegd:",
            "прикреп", "вложен", "eklendi", "załącz", "bifoga", "vedhæft", "مرفق", "מצורף", "附件", "添付")  # fmt: skip

ATTACHED = ("(file attached)", "(datei angehängt)", "(archivo adjunto)", "(arquivo anexado)", "(fichier joint)",
            "(file allegato)", "(bestand bijgevoegd)", "(файл добавлен)", "(dosya ekli)", "(plik dołączony)",
            "(bifogad fil)", "(fil vedhæftet)", "(ملف مرفق)", "(קובץ מצורף)", "(附件)")  # fmt: skip
PLACES = ("location: https://", "live location shared", "standort: https://", "ubicación: https://",
          "localização: https://", "position: https://", "posizione: https://", "locatie: https://",
          "местоположение: https://", "konum: https://")  # fmt: skip

FORENOON = ("a", "ص", "πμ", "π.μ", "de", "dop", "öö", "ö", "上午", "午前", "오전", "π", "vorm", "fm", "ip", "ap")
AFTERNOON = ("p", "م", "μμ", "μ.μ", "du", "odp", "ös", "下午", "午後", "오후", "μ", "nachm", "em", "ip.", "ч")
LOG_LEVELS = frozenset(("INFO", "WARN", "WARNING", "ERROR", "DEBUG", "TRACE", "FATAL", "CRITICAL", "NOTICE"))
