"""Lines that are furniture of a web page: menus, cookie notices, share buttons, copyright."""

import re

LONGEST = 240
"""Characters beyond which a line is taken for prose."""

LEGAL = r"(?:terms(?: of (?:use|service))|privacy policy|cookie policy)"

# Each matches a whole line. English, Chinese, Japanese, German, French, Spanish.
PATTERNS = (
    # Cookies and consent.
    r"(?:this|our|the) (?:web ?)?(?:site|page)s? uses? cookies\b.*",
    r"we (?:and our partners )?use cookies\b.*",
    r"(?:accept|reject|allow|manage|decline) (?:all )?(?:cookies|cookie settings)[.!]?",
    r"by (?:continuing|using|browsing)\b.{0,80}"
    r"\b(?:cookies|cookie policy|terms of use|privacy policy)\b.*",
    r"(?:本网站|本站|本網站|我们|我們)(?:会|會|将|將)?使用\s?cookies?.*",
    r"(?:当|このウェブ|この)サイトでは.{0,20}(?:cookie|クッキー).*",
    r"(?:diese|unsere) (?:web)?(?:site|seite) (?:verwendet|nutzt) cookies\b.*",
    r"(?:ce|notre) site (?:web )?utilise des cookies\b.*",
    r"(?:este|nuestro) sitio (?:web )?(?:utiliza|usa) cookies\b.*",
    # Scripts that did not run, and text that fills a layout.
    r"(?:please )?(?:enable|turn on|activate) javascript\b.{0,120}",
    r"(?:this (?:site|page) requires|you need to enable) javascript\b.{0,120}",
    r"请(?:启用|开启|打开)\s?javascript.{0,60}",
    r"lorem ipsum dolor sit amet\b.*",
    # Sharing and subscribing.
    r"(?:share|tweet|pin|like) (?:this|on|to|via)(?: (?:post|article|page|story))?"
    r"(?: (?:on|to|via))?"
    r"(?: (?:facebook|twitter|x|linkedin|whatsapp|email|pinterest|reddit|and)[,/&]?)*[:!]?",
    r"(?:follow|like|find) us on \w+[.!:]?",
    r"(?:sign up for|subscribe to) (?:our|the) (?:free )?(?:\w+ )?newsletter\b.{0,80}",
    r"分享(?:到|至)[:：]?.{0,30}",
    r"(?:扫一扫|扫描二维码|长按二维码|关注我们|关注公众号|點擊關注|点击关注).{0,40}",
    r"(?:この記事を)?(?:シェア|ツイート)(?:する)?",
    # Getting around.
    r"(?:read|show|load|see|view) (?:more|less|all)(?: (?:posts|comments|articles))?[.…»>]*",
    r"(?:continue reading|back to top|skip to (?:main )?content|go to top|print this page)[.…»>→]*",
    r"[«<←]*\s*(?:previous|next|older|newer) (?:post|article|page|entry|posts|entries)\s*[:»>→]*",
    r"(?:log ?in|sign ?in|sign ?up)"
    r"(?: (?:or|/|to) (?:register|log ?in|sign ?in|sign ?up|comment))?",
    r"(?:leave|post|add) a (?:comment|reply)[.…:]?|\d+ comments?|no comments(?: yet)?[.]?",
    r"(?:上一[篇页頁章]|下一[篇页頁章])[:：]?.{0,60}",
    r"(?:返回(?:顶部|首页|列表)|回到顶部|点击查看更多|查看更多|展开全文|阅读全文|加载更多)[>»…]*",
    r"(?:続きを読む|もっと見る|トップへ戻る|ページの先頭へ)[>»…]*",
    r"(?:mehr anzeigen|weiterlesen|nach oben|lire la suite|haut de page|leer más)[.…»>]*",
    # Rights.
    r"(?:copyright\s*)?(?:©|\(c\)|copyright)\s*(?:19|20)\d\d\b.{0,120}",
    r"all rights reserved[.]?",
    r"(?:版权所有|版權所有|著作権所有).{0,80}",
    r".{0,40}[京沪粤浙苏]\s?icp\s?[备證证]\s?\d+.{0,40}",
    rf"{LEGAL}(?:\s*[|·•/&]\s*(?:{LEGAL}|sitemap))*",
)  # fmt: skip
WHOLE_LINE = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS), re.IGNORECASE)

SEPARATOR = re.compile(r"\s+[|·•»>›/]\s+|[|·•]")
LONGEST_ITEM = 24
MENU_ITEMS = frozenset(
    {
        "home", "about", "about us", "contact", "contact us", "login", "log in", "sign in",
        "register", "sign up", "blog", "news", "faq", "faqs", "help", "sitemap", "site map",
        "search", "privacy",
        "首页", "首頁", "新闻", "关于我们", "關於我們", "联系我们", "聯絡我們", "登录", "登入",
        "注册", "ホーム", "ニュース", "お問い合わせ", "会社概要", "ログイン", "サイトマップ",
        "startseite", "kontakt", "impressum", "accueil", "inicio", "contacto",
    }
)  # fmt: skip
"""What shows that items with bars between them are a menu, and not a table or a shell pipe."""


def is_boilerplate(line: str) -> bool:
    """Say whether a line, without its margins, is furniture of a web page and nothing else."""
    if len(line) > LONGEST:
        return False
    return WHOLE_LINE.fullmatch(line) is not None or is_menu(line)


def is_menu(line: str) -> bool:
    """Say whether a line is three or more short items with bars or the like between them, two of
    them words of menus."""
    items = SEPARATOR.split(line)
    return (
        len(items) >= 3
        and all(len(item) <= LONGEST_ITEM for item in items)
        and sum(item.lower() in MENU_ITEMS for item in items) >= 2
    )
