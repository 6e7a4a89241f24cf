export default (section) => ({ show() {}, hide() {} });
