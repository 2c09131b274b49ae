const $ = (s, e) => (e || document).querySelector(s), $$ = (s, e) => [...(e || document).querySelectorAll(s)];
const rows = $$('article'), dots = $$('.index button'), store = 'mcft-review-' + document.body.dataset.page;
const tags = document.body.dataset.tags.split(' ');
let log = [], at = 0, memory = false;
try { log = JSON.parse(localStorage.getItem(store) || '[]'); } catch (e) { memory = true; }
const say = t => {
  $('.says').textContent = t;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $('.says').textContent = ''; }, 4000);
};
const who = () => $('#who').value.trim();
const last = id => log.filter(d => d.row_id === id && d.reviewer === who()).pop();
const field = (e, k) => $('[name=' + k + ']', e);

function paint() {
  rows.forEach((e, i) => {
    const d = last(e.dataset.id);
    e.hidden = i !== at;
    dots[i].className = (d ? d.decision : '') + (i === at ? ' here' : '');
  });
  const n = rows.filter(e => last(e.dataset.id)).length;
  label();
  $('.count').textContent = n + ' of ' + rows.length + ' decided';
  dots[at].scrollIntoView({block: 'nearest', inline: 'nearest'});
}
function label() { $('[data-do=edit]').firstChild.data = $('.fields', rows[at]).hidden ? 'Edit' : 'Save'; }
function go(i) { at = Math.max(0, Math.min(rows.length - 1, i)); paint(); window.scrollTo(0, 0); }
function next() { const i = rows.findIndex((e, j) => j > at && !last(e.dataset.id)); go(i >= 0 ? i : at + 1); }

function decide(kind) {
  const e = rows[at], box = $('.fields', e), edit = kind === 'edit';
  if (!who()) { $('#who').focus(); return say('Your name first: every decision carries one.'); }
  if (edit && box.hidden) {
    box.hidden = false; label(); field(e, 'critique').focus();
    return say('Change the texts, then press Save.');
  }
  const text = k => edit ? field(e, k).value : null, texts = ['critique', 'reasoning', 'answer'].map(text);
  if (edit && texts.some(t => !t.trim())) return say('No part may be empty: drop the row instead.');
  if (edit && texts.some(t => tags.some(g => t.includes(g))))
    return say('No part may hold a tag such as ' + tags[0] + '.');
  log.push({row_id: e.dataset.id, row_hash: e.dataset.hash, reviewer: who(),
            time: new Date().toISOString(), decision: kind,
            critique: texts[0], reasoning: texts[1], answer: texts[2], note: field(e, 'note').value});
  try { localStorage.setItem(store, JSON.stringify(log)); } catch (x) { memory = true; }
  box.hidden = true;
  say(kind + (memory ? ': this browser keeps nothing, download before you leave' : ''));
  next();
}
function download() {
  if (!log.length) return say('Nothing decided yet.');
  const a = document.createElement('a');
  const lines = log.map(d => JSON.stringify(d) + '\n').join('');
  a.href = URL.createObjectURL(new Blob([lines], {type: 'application/jsonl'}));
  a.download = 'decisions-' + (who().replace(/[^\w-]+/g, '_') || 'review') + '.jsonl';
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}
const actions = {keep: () => decide('keep'), drop: () => decide('drop'), edit: () => decide('edit'),
                 back: () => go(at - 1), next: () => go(at + 1), download: download};
const keys = {k: 'keep', d: 'drop', e: 'edit', ArrowLeft: 'back', p: 'back', ArrowRight: 'next', n: 'next',
              s: 'download'};
$$('[data-do]').forEach(b => b.addEventListener('click', () => actions[b.dataset.do]()));
dots.forEach((b, i) => b.addEventListener('click', () => go(i)));
document.addEventListener('keydown', e => {
  if (e.key === 'Escape') { $('.fields', rows[at]).hidden = true; label(); return document.activeElement.blur(); }
  if (e.ctrlKey || e.metaKey || e.altKey || /INPUT|TEXTAREA/.test(e.target.tagName) || !(e.key in keys)) return;
  e.preventDefault(); actions[keys[e.key]]();
});
const name = store + '-who';
try { $('#who').value = localStorage.getItem(name) || ''; } catch (e) { memory = true; }
$('#who').addEventListener('input', () => {
  try { localStorage.setItem(name, $('#who').value); } catch (e) { memory = true; }
  paint();
});
go(Math.max(0, rows.findIndex(e => !last(e.dataset.id))));
