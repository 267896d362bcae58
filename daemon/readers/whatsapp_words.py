"""What WhatsApp itself writes into an exported chat, in the languages that its users have seen: names of files,
placeholders of media, deleted messages, calls, marks of edits, and words for the halves of the day.
"""

# Around the other person's or the group's name in the name of the exported file.
FILE_PREFIXES = (
    "whatsapp chat with ", "whatsapp chat mit ", "whatsapp chat - ", "whatsapp-chat mit ", "whatsapp-chat met ",
    "whatsapp-chatt med ", "whatsapp-chat med ", "whatsapp-chat - ", "whatsapp-samtale med ", "whatsapp sohbeti - ",
    "chat de whatsapp con ", "chat de whatsapp - ", "chat whatsapp con ", "chat whatsapp - ",
    "chat do whatsapp com ",
    "conversa do whatsapp com ", "conversa do whatsapp - ", "conversa de whatsapp amb ",
    "discussion whatsapp avec ",
    "discussion whatsapp - ", "czat whatsapp z użytkownikiem ", "czat whatsapp z ", "чат whatsapp с ",
    "чат whatsapp - ",
    "чат whatsapp із ", "чат whatsapp з ", "chat whatsapp dengan ", "whatsapp-keskustelu: ", "whatsapp chat s ",
    "whatsapp chat cu ", "conversație whatsapp cu ", "محادثة واتساب مع ", "دردشة واتساب مع ",
    "صدّر دردشة واتساب مع ",
    "צ'אט whatsapp עם ", "与", "與", "whatsapp 聊天 - ", "whatsapp 대화 - ", "whatsappチャット - ",
)  # fmt: skip
FILE_SUFFIXES = (
    " ile whatsapp sohbeti", "的 whatsapp 聊天", "的 whatsapp 對話", "的whatsapp聊天", "とのwhatsappチャット",
    " 님과 whatsapp 대화",
    " के साथ whatsapp चैट",
)  # fmt: skip

# A whole message that is only a placeholder. Android puts most of them in angle brackets, which needs no list.
_MEDIA = ("Image", "Video", "Audio", "GIF", "Sticker", "Document", "Contact card", "Video note", "Media", "Photo",
          "View once message", "View once photo", "View once video")  # fmt: skip
_PLACEHOLDERS = tuple(f"{word} omitted" for word in _MEDIA) + (
    "Imagen omitida", "Vídeo omitido", "Video omitido", "Audio omitido", "Sticker omitido", "GIF omitido",
    "Documento omitido", "Tarjeta de contacto omitida", "Imagem ocultada", "Vídeo ocultado", "Áudio ocultado",
    "Figurinha omitida", "Imagem omitida", "Áudio omitido", "GIF ocultado", "Documento ocultado",
    "Cartão do contato omitido",
    "Bild weggelassen", "Video weggelassen", "Audio weggelassen", "Sticker weggelassen", "GIF weggelassen",
    "Dokument weggelassen", "Kontaktkarte ausgelassen", "Kontaktkarte weggelassen", "Videonachricht weggelassen",
    "Image absente", "Vidéo absente", "Audio omis", "Image omise", "Vidéo omise", "Sticker omis", "GIF omis",
    "Document omis", "GIF retiré", "Fiche contact omise", "Immagine omessa", "Video omesso", "Audio omesso",
    "Sticker non incluso", "Sticker omesso", "GIF esclusa", "Documento omesso", "Scheda contatto omessa",
    "Afbeelding weggelaten", "Video weggelaten", "Audio weggelaten", "GIF weggelaten", "Sticker weggelaten",
    "Document weggelaten", "Contactkaart weggelaten", "Изображение отсутствует", "Видео отсутствует",
    "GIF отсутствует",
    "Аудиофайл отсутствует", "Стикер отсутствует", "Документ отсутствует", "Без медиафайлов",
    "Görüntü dahil edilmedi",
    "Video dahil edilmedi", "Ses dahil edilmedi", "Çıkartma dahil edilmedi", "Belge dahil edilmedi",
    "GIF dahil edilmedi",
    "Obraz pominięty", "Pominięto obraz", "Pominięto wideo", "Pominięto audio", "Gambar tidak disertakan",
    "Video tidak disertakan", "Audio tidak disertakan", "Stiker tidak disertakan", "התמונה הושמטה", "תמונה הושמטה",
    "הסרטון הושמט", "וידאו הושמט", "האודיו הושמט", "סטיקר הושמט", "המסמך הושמט", "ה-GIF הושמט", "הצליל הושמט",
    "תמונה לא נכללה", "וידאו לא נכלל", "אודיו לא נכלל", "כרטיס איש קשר הושמט", "تم استبعاد الصورة",
    "تم استبعاد الفيديو",
    "تم استبعاد الملصق", "تم استبعاد المقطع الصوتي", "تم استبعاد المستند", "تم استبعاد الوسائط", "الصورة غير مضمنة",
    "الصورة غير مضمّنة", "الفيديو غير مضمّن", "الصوت غير مضمّن", "الملصق غير مضمّن", "图像已忽略", "视频已忽略",
    "音频已忽略",
    "忽略图片", "忽略视频", "忽略音频", "圖片已略去", "影片已略去", "画像は省略されました", "動画は省略されました",
    "사진 생략됨",
)

_DELETED = (
    "This message was deleted", "You deleted this message", "This message was deleted by admin",
    "You deleted this message as admin", "Waiting for this message",
    "Waiting for this message. This may take a while",
    "Diese Nachricht wurde gelöscht", "Du hast diese Nachricht gelöscht", "Sie haben diese Nachricht gelöscht",
    "Diese Nachricht wurde von einem Admin gelöscht", "Se eliminó este mensaje", "Eliminaste este mensaje",
    "Este mensaje fue eliminado", "Este mensaje ha sido eliminado", "Has eliminado este mensaje",
    "Mensagem apagada",
    "Essa mensagem foi apagada", "Esta mensagem foi apagada", "Você apagou esta mensagem",
    "Você apagou essa mensagem",
    "Esta mensagem foi eliminada", "Eliminou esta mensagem", "Apagou esta mensagem", "Ce message a été supprimé",
    "Vous avez supprimé ce message", "Questo messaggio è stato eliminato", "Hai eliminato questo messaggio",
    "Dit bericht is verwijderd", "Je hebt dit bericht verwijderd", "U hebt dit bericht verwijderd",
    "Данное сообщение удалено", "Это сообщение было удалено", "Сообщение удалено", "Вы удалили данное сообщение",
    "Вы удалили это сообщение", "Це повідомлення видалено", "Ви видалили це повідомлення", "Bu mesaj silindi",
    "Bu mesajı sildiniz", "Ta wiadomość została usunięta", "Wiadomość została usunięta", "Usunięto tę wiadomość",
    "Usunięto wiadomość", "Tato zpráva byla odstraněna", "Tato zpráva byla smazána", "Tuto zprávu jste odstranili",
    "Táto správa bola odstránená", "Acest mesaj a fost șters", "Ai șters acest mesaj", "Ezt az üzenetet törölték",
    "Üzenet törölve", "Törölted ezt az üzenetet", "Detta meddelande har raderats",
    "Det här meddelandet har raderats",
    "Du raderade det här meddelandet", "Denne besked blev slettet", "Du slettede denne besked",
    "Denne meldingen ble slettet", "Du slettet denne meldingen", "Tämä viesti poistettiin", "Poistit tämän viestin",
    "Αυτό το μήνυμα διαγράφηκε", "Διαγράψατε αυτό το μήνυμα", "S'ha suprimit aquest missatge",
    "Pesan ini telah dihapus", "Pesan ini dihapus", "Anda menghapus pesan ini", "Anda telah menghapus pesan ini",
    "Mesej ini telah dipadam", "Anda telah memadam mesej ini", "Tin nhắn này đã bị xóa", "Bạn đã xóa tin nhắn này",
    "यह मैसेज मिटाया गया", "आपने यह मैसेज मिटाया", "यह मैसेज डिलीट किया गया", "تم حذف هذه الرسالة",
    "حذفت هذه الرسالة",
    "لقد حذفت هذه الرسالة", "این پیام حذف شد", "شما این پیام را حذف کردید", "הודעה זו נמחקה", "מחקת הודעה זו",
    "ההודעה נמחקה", "此消息已删除", "你已删除此消息", "您已删除此消息", "此訊息已刪除", "您已刪除此訊息",
    "你已刪除此訊息",
    "このメッセージは削除されました", "このメッセージを削除しました", "삭제된 메시지입니다",
    "이 메시지는 삭제되었습니다", "ข้อความนี้ถูกลบแล้ว",
    "คุณลบข้อความนี้แล้ว",
)

_CALLS = (
    "Missed voice call", "Missed video call", "Missed group voice call", "Missed group video call", "Missed call",
    "Verpasster Sprachanruf", "Verpasster Videoanruf", "Verpasster Anruf", "Llamada perdida",
    "Videollamada perdida",
    "Llamada de voz perdida", "Chamada de voz perdida", "Chamada de vídeo perdida", "Ligação de voz perdida",
    "Ligação de vídeo perdida", "Appel vocal manqué", "Appel vidéo manqué", "Chiamata persa", "Videochiamata persa",
    "Chiamata vocale persa", "Gemiste spraakoproep", "Gemiste video-oproep", "Gemiste oproep",
    "Пропущенный аудиозвонок", "Пропущенный видеозвонок", "Cevapsız sesli arama", "Cevapsız görüntülü arama",
    "Panggilan suara tak terjawab", "Panggilan video tak terjawab", "Nieodebrane połączenie głosowe",
    "Nieodebrane połączenie wideo", "مكالمة صوتية لم يرد عليها", "مكالمة فيديو لم يرد عليها",
    "שיחה קולית שלא נענתה",
    "שיחת וידאו שלא נענתה", "null",
)
# How a line that WhatsApp has marked as its own begins where it is of a call.
CALL_STARTS = ("missed voice call", "missed video call", "missed group", "voice call", "video call", "group call",
               "silenced voice call", "silenced video call", "sprachanruf", "videoanruf", "llamada",
               "videollamada", "appel",
               "chamada", "chiamata", "videochiamata")  # fmt: skip


def _with_stop(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(text.casefold() + end for text in texts for end in ("", "."))


_PLACES = (
    "Live location shared", "Live-Standort wird geteilt", "Ubicación en tiempo real compartida",
    "Live-locatie gedeeld",
    "Localização em tempo real compartilhada", "Position en direct partagée", "Posizione in tempo reale condivisa",
    "Трансляция геоданных", "Canlı konum paylaşıldı",
)
MEDIA, DELETED, CALLS, PLACES = map(_with_stop, (_PLACEHOLDERS, _DELETED, _CALLS, _PLACES))
ALONE = MEDIA | DELETED | CALLS | PLACES
# As they stand in a file: what is none of these needs no closer look.
EXACT = frozenset(
    form + end
    for text in _PLACEHOLDERS + _DELETED + _CALLS + _PLACES
    for form in (text, text.casefold(), text[:1].lower() + text[1:])
    for end in ("", ".")
)

# How the notices that stand in a person's place begin, where the mark in front of them was lost.
NOTICE_STARTS = (
    "messages and calls are end-to-end encrypted", "messages to this chat and calls are now secured",
    "messages to this group are now secured", "messages you send to this chat and calls are now secured",
    "messages you send to this group are now secured", "nachrichten und anrufe sind ende-zu-ende-verschlüsselt",
    "nachrichten in diesem chat sowie anrufe sind jetzt mit ende-zu-ende",
    "nachrichten in dieser gruppe sind jetzt mit ende",
    "los mensajes y las llamadas están cifrados de extremo a extremo", "los mensajes y llamadas están cifrados",
    "as mensagens e as chamadas são protegidas com a criptografia de ponta a ponta", "as mensagens e ligações são",
    "les messages et les appels sont chiffrés de bout en bout",
    "les messages et appels sont chiffrés de bout en bout",
    "i messaggi e le chiamate sono crittografati end-to-end", "berichten en gesprekken zijn end-to-end versleuteld",
    "berichten en oproepen zijn end-to-end versleuteld", "сообщения и звонки защищены сквозным шифрованием",
    "mesajlar ve aramalar uçtan uca şifrelidir", "wiadomości i połączenia są w pełni szyfrowane",
    "pesan dan panggilan dienkripsi secara end-to-end", "הודעות ושיחות מוצפנות מקצה לקצה",
    "ההודעות והשיחות מוצפנות מקצה לקצה", "الرسائل والمكالمات مشفرة تمامًا بين الطرفين",
)  # fmt: skip

# Inside the angle brackets behind a text that was edited.
EDITED = ("edit", "bearbeitet", "modifi", "modificato", "bewerkt", "изменен", "відредагован", "düzenlendi", "edytowan",
          "redigera", "redigeret", "redigert", "upraven", "szerkeszt", "muokattu", "επεξεργ", "تعديل", "ویرایش",
          "נערכה",
          "编辑", "編輯", "編集", "수정", "แก้ไข", "chỉnh sửa", "संपादित", "diubah")  # fmt: skip

# Inside the angle brackets behind a caption.
ENCLOSED = ("attached:", "anhang:", "angehängt:", "adjunto:", "anexado:", "anexo:", "joint", "allegato:", "bijgevoegd:",
            "прикреп", "вложен", "eklendi", "załącz", "bifoga", "vedhæft", "مرفق", "מצורף", "附件", "添付") # fmt: skip

ATTACHED = ("(file attached)", "(datei angehängt)", "(archivo adjunto)", "(arquivo anexado)", "(fichier joint)",
            "(file allegato)", "(bestand bijgevoegd)", "(файл добавлен)", "(dosya ekli)", "(plik dołączony)",
            "(bifogad fil)", "(fil vedhæftet)", "(ملف مرفق)", "(קובץ מצורף)", "(附件)")  # fmt: skip
PLACE_STARTS = ("location: https://", "standort: https://", "ubicación: https://",
          "localização: https://", "position: https://", "posizione: https://", "locatie: https://",
          "местоположение: https://", "konum: https://")  # fmt: skip

# Halves of the day, without dots and spaces, in small letters.
FORENOON = frozenset((
    "am", "a", "vm", "vorm", "morgens", "fm", "ap", "de", "dop", "öö", "fh", "sa", "pg", "pagi", "sáng", "дп",
    "пробед",
    "доп", "пробв", "проб", "претпл", "препладне", "преподне", "damanhã", "manhã", "matin", "eparadites",
    "paradite",
    "pd", "priešpiet", "rn", "πμ", "ص", "صباحا", "صباحًا", "قظ", "قبلازظهر", "לפנהצ", "בבוקר", "पूर्वाह्न", "मपू",
    "পূর্বাহ্ণ", "முற்பகல்", "ก่อนเที่ยง", "上午", "凌晨", "早上", "清晨", "早晨", "午前", "오전", "asubuhi",
    "dopołudnia",
    "довечера",
    "дополудня", "կա", "ព្រឹក", "နံနက်",
))  # fmt: skip
AFTERNOON = frozenset((
    "pm", "p", "nm", "nachm", "abends", "em", "ip", "du", "odp", "pop", "ös", "ch", "ptg", "petang", "malam",
    "chiều", "tối",
    "пп", "слоб", "попл", "попладне", "поподне", "пополудни", "datarde", "danoite", "tarde", "noite", "soir",
    "epasdites",
    "pasdite", "md", "popiet", "in", "eh", "μμ", "م", "مساء", "مساءً", "بظ", "بعدازظهر", "אחהצ", "בערב",
    "अपराह्न", "मउ", "অপরাহ্ণ",
    "பிற்பகல்", "หลังเที่ยง", "下午", "晚上", "傍晚", "午後", "오후", "mchana", "jioni", "popołudniu", "կհ",
    "ល្ងាច", "ညနေ",
))  # fmt: skip
NOON = frozenset(("中午",))
# Words beside a clock of 24 hours.
OF_24_HOURS = frozenset((
    "à", "às", "as", "ás", "um", "uhr", "kl", "klo", "kello", "at", "o", "u", "în", "la", "las", "alas", "alle",
    "ore", "om", "h",
    "hr", "hrs", "uur", "ч", "час", "в", "น", "時", "시", "ob", "ve", "pukul", "jam",
))  # fmt: skip
LOG_LEVELS = frozenset(("INFO", "WARN", "WARNING", "ERROR", "DEBUG", "TRACE", "FATAL", "CRITICAL", "NOTICE"))
